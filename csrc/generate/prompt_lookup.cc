#include "generate/prompt_lookup.h"

#include <algorithm>
#include <utility>

namespace qwen2vl {

PromptLookup::PromptLookup(const std::vector<int32_t>& prompt, int64_t max_new_tokens,
                           std::vector<int32_t> ends)
    : ends_(std::move(ends)) {
  text_.reserve(prompt.size() + max_new_tokens);
  text_.assign(prompt.begin(), prompt.end());
  draft_.reserve(kLongest);
}

const std::vector<int32_t>& PromptLookup::draft(int64_t limit) {
  draft_.clear();
  const auto length = static_cast<int64_t>(text_.size());
  limit = std::min(limit, kLongest);
  int64_t agreeing = kShortest - 1, next = length;  // of the best place so far, and what follows it
  for (int64_t end = length - 1; end >= kShortest && agreeing < kLongest; --end) {
    // Most places differ in the last token, most others in the one that would make them better.
    if (text_[end - 1] != text_[length - 1]) continue;
    if (agreeing >= end || text_[end - 1 - agreeing] != text_[length - 1 - agreeing]) continue;
    int64_t count = 1;
    while (count < end && count < kLongest && text_[end - 1 - count] == text_[length - 1 - count]) ++count;
    if (count > agreeing) {
      agreeing = count;
      next = end;
    }
  }
  if (next == length) return draft_;
  for (const int64_t end = next + std::min(limit, agreeing); next < end; ++next) {
    const int32_t id = next < length ? text_[next] : draft_[next - length];
    if (std::find(ends_.begin(), ends_.end(), id) != ends_.end()) break;
    draft_.push_back(id);
  }
  return draft_;
}

}  // namespace qwen2vl
