#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace qwen2vl {

// Turns bytes that arrive in arbitrary pieces into valid UTF-8: complete characters come out at once, the
// start of one is held back until its end arrives. What is not UTF-8 becomes U+FFFD, one for each maximal
// ill-formed part, which is what Python's bytes.decode("utf-8", "replace") and the tokenizer's own decoder do
// with the whole.
class Utf8Decoder {
 public:
  // Appends what is complete to `text`.
  void push(std::string_view bytes, std::string* text);
  // The input is over: an unfinished character becomes U+FFFD.
  void finish(std::string* text);

 private:
  void push_byte(uint8_t byte, std::string* text);

  std::array<char, 4> pending_{};     // the character so far
  int pending_size_ = 0;              // 0 to 3 bytes
  int missing_ = 0;                   // bytes that it still needs
  uint8_t low_ = 0x80, high_ = 0xBF;  // bounds of the next one
};

}  // namespace qwen2vl
