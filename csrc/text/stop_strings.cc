#include "text/stop_strings.h"

#include <algorithm>
#include <utility>

#include "common/error.h"

namespace qwen2vl {

namespace {

bool ends_with(std::string_view text, std::string_view ending) {
  return text.size() >= ending.size() &&
         text.compare(text.size() - ending.size(), ending.size(), ending) == 0;
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
  for (const auto& string : strings_) {
    if (string.empty()) throw InputError("a stop string must not be empty");
  }
}

// Byte by byte, so that the result can't depend on the pieces. Stop strings are few and short.
void StopStrings::push(std::string_view piece, std::string* text) {
  if (strings_.empty()) {
    text->append(piece);
    return;
  }
  for (const char byte : piece) {
    if (found_ != nullptr) return;
    held_.push_back(byte);
    for (const auto& string : strings_) {
      if (ends_with(held_, string) && (found_ == nullptr || string.size() > found_->size())) found_ = &string;
    }
    const size_t kept = found_ != nullptr ? found_->size() : possible_start_size();
    text->append(held_, 0, held_.size() - kept);
    held_.erase(0, held_.size() - kept);
  }
  if (found_ != nullptr) held_.clear();
}

void StopStrings::finish(std::string* text) {
  if (found_ == nullptr) text->append(held_);
  held_.clear();
}

// The size of the longest end of held_ that is the beginning of a stop string.
size_t StopStrings::possible_start_size() const {
  size_t longest = 0;
  for (const auto& string : strings_) {
    for (size_t size = std::min(string.size() - 1, held_.size()); size > longest; --size) {
      if (ends_with(held_, std::string_view(string).substr(0, size))) {
        longest = size;
        break;
      }
    }
  }
  return longest;
}

}  // namespace qwen2vl
