#include "text/token_text.h"

#include "common/error.h"

namespace qwen2vl {

TokenText::TokenText(const std::vector<std::string>& token_bytes, const std::vector<int32_t>& special)
    : special_(token_bytes.size(), false) {
  offsets_.reserve(token_bytes.size() + 1);
  offsets_.push_back(0);
  for (const auto& bytes : token_bytes) {
    bytes_ += bytes;
    offsets_.push_back(bytes_.size());
  }
  for (const int32_t id : special) {
    if (!has(id)) {
      throw InputError("special token id " + std::to_string(id) + " is outside the vocabulary of " +
                       std::to_string(tokens()));
    }
    special_[id] = true;
  }
}

std::string_view TokenText::bytes(int32_t id) const {
  if (!has(id)) return {};
  return std::string_view(bytes_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
}

bool TokenText::is_special(int32_t id) const { return has(id) && special_[id]; }

}  // namespace qwen2vl
