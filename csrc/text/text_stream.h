#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "text/stop_strings.h"
#include "text/token_text.h"
#include "text/utf8_decoder.h"

namespace qwen2vl {

// The text of one answer, token by token. Its pieces, joined, are the tokenizer's decode of all tokens but
// the special ones, cut at the first stop string; each piece is valid UTF-8.
class TextStream {
 public:
  // tokens must outlive the stream.
  TextStream(const TokenText& tokens, std::vector<std::string> stop_strings);

  // Appends to `piece` the text that this token completes, often none.
  void push(int32_t id, std::string* piece);
  // Appends what was held back: there are no more tokens.
  void finish(std::string* piece);

  // The stop string that ended the text, or null.
  const std::string* stop_string() const { return stop_.found(); }

 private:
  const TokenText& tokens_;
  Utf8Decoder decoder_;
  StopStrings stop_;
  std::string decoded_;  // scratch
};

}  // namespace qwen2vl
