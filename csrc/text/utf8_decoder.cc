#include "text/utf8_decoder.h"

namespace qwen2vl {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

void Utf8Decoder::push(std::string_view bytes, std::string* text) {
  for (const char byte : bytes) push_byte(static_cast<uint8_t>(byte), text);
}

void Utf8Decoder::finish(std::string* text) {
  if (missing_ > 0) text->append(kReplacement);
  pending_size_ = missing_ = 0;
}

// Unicode 15, table 3-7: which bytes may start a character, and which may follow.
void Utf8Decoder::push_byte(uint8_t byte, std::string* text) {
  if (missing_ > 0) {
    if (byte >= low_ && byte <= high_) {
      pending_[pending_size_++] = static_cast<char>(byte);
      low_ = 0x80;
      high_ = 0xBF;
      if (--missing_ == 0) {
        text->append(pending_.data(), pending_size_);
        pending_size_ = 0;
      }
      return;
    }
    finish(text);  // ill-formed up to here; this byte starts anew
  }
  if (byte < 0x80) {
    text->push_back(static_cast<char>(byte));
    return;
  }
  if (byte < 0xC2 || byte > 0xF4) {
    text->append(kReplacement);
    return;
  }
  missing_ = byte < 0xE0 ? 1 : byte < 0xF0 ? 2 : 3;
  low_ = byte == 0xE0 ? 0xA0 : byte == 0xF0 ? 0x90 : 0x80;   // no overlong forms
  high_ = byte == 0xED ? 0x9F : byte == 0xF4 ? 0x8F : 0xBF;  // no surrogates, nothing beyond U+10FFFF
  pending_[0] = static_cast<char>(byte);
  pending_size_ = 1;
}

}  // namespace qwen2vl
