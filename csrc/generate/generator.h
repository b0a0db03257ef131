#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "embedding/embedding_table.h"
#include "generate/executor.h"
#include "generate/request.h"
#include "generate/sequence.h"
#include "rope/rope_table.h"
#include "text/token_text.h"

namespace qwen2vl {

// What the loop has to know about the decoder. The engine knows the rest.
struct DecoderSettings {
  int64_t hidden;
  int64_t vocab;
  int64_t head_dim;
  double theta;
  std::array<int64_t, 3> sections;
  VisualTokens visual_tokens;
  int64_t prefill_chunk;  // the most tokens of a prompt that one engine run takes
  // Whether the engine computes an answer's own tokens in another way than a prompt's (DecoderStep::prompt).
  // What the cache holds of an answer is then not what a later prompt that repeats it would have computed, so
  // such a prompt reuses the cache up to the answer and computes the rest.
  bool answers_apart = false;
};

// Called after each token with the request's index, the text that the token completed (valid UTF-8, often
// empty) and its id. Text held back when an answer is cancelled comes in one more call with token id -1.
// Returning true ends that answer ("cancelled"), without further calls for it.
using TextCallback = std::function<bool(int64_t index, const std::string& piece, int32_t token_id)>;

// The generation loop: prefill in chunks, row by row, then batched decode steps. An answer does not depend on
// the chunk size, on the rest of the batch or on what the cache held before.
//
// Between two tokens the loop allocates nothing of its own: a step writes the inputs into the step's fixed
// buffers, runs the executor, and samples.
class Generator {
 public:
  Generator(std::shared_ptr<Executor> executor, std::shared_ptr<KVCache> cache,
            std::shared_ptr<const EmbeddingTable> embedding, std::shared_ptr<const TokenText> token_text,
            const DecoderSettings& settings);

  // Answers the requests, cache.rows() at a time: when an answer ends, the next request takes its row, or the
  // last row moves there. Results come in the order of the requests. All requests are checked before anything
  // runs: InputError, PromptTooLongError. What the executor or the callback throws passes through; the cache
  // then holds what had been computed, and the generator can be used again.
  std::vector<Result> generate(const std::vector<const Request*>& requests, const TextCallback& on_text,
                               const CancelToken* cancel);

  // How many leading tokens of this request's prompt some cache row already holds, so that they need not be
  // computed when it is the first of the next call. Visuals that lie wholly before that need no embeddings.
  // Throws Error while a generation runs, since that changes the answer.
  int64_t cached_prefix(const Request& request) const;

  const std::shared_ptr<KVCache>& cache() const { return cache_; }
  const std::shared_ptr<DecoderStep>& step() const { return step_; }
  const DecoderSettings& settings() const { return settings_; }

 private:
  class Batch;

  // A row of the cache and how much of a prompt it holds.
  struct CachedPrefix {
    int64_t row, length;
  };

  void check(const Request& request, bool may_use_cache) const;
  CachedPrefix find_prefix(const Prompt& prompt, int64_t preferred_row) const;

  std::shared_ptr<Executor> executor_;
  std::shared_ptr<KVCache> cache_;
  std::shared_ptr<const EmbeddingTable> embedding_;
  std::shared_ptr<const TokenText> token_text_;
  DecoderSettings settings_;
  RopeTable rope_;
  std::shared_ptr<DecoderStep> step_;
  std::vector<int32_t> step_ids_;  // [rows], of a decode step
};

}  // namespace qwen2vl
