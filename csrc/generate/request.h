#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "embedding/input_embeddings.h"
#include "sampling/sampler.h"
#include "sampling/sampling_options.h"

namespace qwen2vl {

// A prompt, ready for the decoder, and how to continue it.
struct Request {
  std::vector<int32_t> token_ids;  // [T], pads expanded: one for each merged patch
  std::vector<int64_t>
      grids;  // [n, 3], t, h, w in patches of every picture and video, in order of appearance
  // [n], in the same order. Those wholly inside the prefix that the cache holds (Generator::cached_prefix)
  // may be without data.
  std::vector<VisualEmbeddings> visuals;
  // [T], what stands at each position, so that the cache's content can be recognised: the token id for text,
  // a hash of the picture's content and the index within it for pads. May be empty for a prompt without
  // visuals.
  std::vector<uint64_t> content_ids;
  SamplingOptions sampling;
  int64_t max_new_tokens = 1;     // at least 1
  std::vector<int32_t> stop_ids;  // tokens that end the answer; kept in token_ids, never part of the text
  std::vector<std::string> stop_strings;  // texts that end the answer; cut from the text
  // The most tokens that one step may draft by looking them up (PromptLookup) and check together; 0 drafts
  // none. The answer is the same.
  int64_t prompt_lookup = 0;
};

enum class FinishReason { kStop, kLength, kCancelled };

struct Result {
  std::vector<int32_t> token_ids;  // every token chosen, the stop token included
  std::string text;
  FinishReason finish_reason = FinishReason::kLength;
  std::optional<std::string> stop_string;  // the one that ended the answer
  std::vector<SampledToken> logprobs;      // parallel to token_ids when asked for, else empty
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;    // of the prompt, found in the cache
  int64_t steps = 0;            // decode steps, each of which may serve several rows
  int64_t drafted_tokens = 0;   // checked by these steps beside the tokens that they were given
  int64_t accepted_tokens = 0;  // of the drafted ones, those that came true
  double prefill_seconds = 0;   // until the first token is chosen
  double decode_seconds = 0;    // from the first token to the last, other rows' prefills included
};

// Ends generations from any thread: they return at the next step or prefill chunk with what they have.
class CancelToken {
 public:
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

 private:
  std::atomic<bool> cancelled_{false};
};

}  // namespace qwen2vl
