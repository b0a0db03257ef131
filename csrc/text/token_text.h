#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qwen2vl {

// The bytes of every token of a byte-level vocabulary, and which tokens are special (control tokens such as
// <|im_end|> and <|box_start|>, which are not part of the text unless asked for).
class TokenText {
 public:
  TokenText(const std::vector<std::string>& token_bytes, const std::vector<int32_t>& special);

  // Empty for ids beyond the tokenizer's: the model's vocabulary is padded with some that mean nothing.
  std::string_view bytes(int32_t id) const;
  bool is_special(int32_t id) const;

 private:
  int64_t tokens() const { return static_cast<int64_t>(special_.size()); }
  bool has(int32_t id) const { return id >= 0 && id < tokens(); }

  std::string bytes_;            // all tokens, one after another
  std::vector<size_t> offsets_;  // [tokens + 1]
  std::vector<bool> special_;
};

}  // namespace qwen2vl
