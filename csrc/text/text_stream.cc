#include "text/text_stream.h"

#include <utility>

namespace qwen2vl {

TextStream::TextStream(const TokenText& tokens, std::vector<std::string> stop_strings)
    : tokens_(tokens), stop_(std::move(stop_strings)) {}

void TextStream::push(int32_t id, std::string* piece) {
  if (tokens_.is_special(id)) return;
  decoded_.clear();
  decoder_.push(tokens_.bytes(id), &decoded_);
  stop_.push(decoded_, piece);
}

void TextStream::finish(std::string* piece) {
  decoded_.clear();
  decoder_.finish(&decoded_);
  stop_.push(decoded_, piece);
  stop_.finish(piece);
}

}  // namespace qwen2vl
