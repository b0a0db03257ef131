#pragma once

#include <cstdint>
#include <vector>

namespace qwen2vl {

// Drafts of an answer's next tokens, looked up in the prompt and in the answer so far: where the last few
// tokens stood before, what followed them then is likely to follow again ("prompt lookup decoding"; an n-gram
// model without weights). A draft costs nothing but the pass that checks it.
class PromptLookup {
 public:
  // Tokens that must agree before anything is drafted; of more than kLongest nobody asks.
  static constexpr int64_t kShortest = 2, kLongest = 32;

  // No draft goes past a token of `ends`, such as the pads that stand for a picture.
  PromptLookup(const std::vector<int32_t>& prompt, int64_t max_new_tokens, std::vector<int32_t> ends);

  // One more token of the answer.
  void push(int32_t id) { text_.push_back(id); }

  // What may come next, at most `limit` tokens: what follows the place that agrees in most tokens with the
  // end of the text, of equals the latest. A place that agrees in m tokens is trusted for m more, so that a
  // chance match costs little and a copied passage is soon drafted in full length. The draft may run past the
  // end of the text into itself, as a repetition does. Empty when there is no such place. Valid until the
  // next call.
  const std::vector<int32_t>& draft(int64_t limit);

 private:
  std::vector<int32_t> text_;  // prompt and answer, memory for all of it taken at once
  std::vector<int32_t> ends_;
  std::vector<int32_t> draft_;
};

}  // namespace qwen2vl
