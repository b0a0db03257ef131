#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cache/cache_rows.h"
#include "generate/decoder.h"
#include "generate/request.h"
#include "generate/sequence.h"
#include "text/token_text.h"

namespace qwen2vl {

// What the loop has to know about the decoder. The engine knows the rest.
struct DecoderSettings {
  int64_t hidden;
  int64_t vocab;
  VisualTokens visual_tokens;
  // Whether the engine computes an answer's own tokens in another way than a prompt's (DecoderStep::prompt).
  // What the cache holds of an answer is then not what a later prompt that repeats it would have computed, so
  // such a prompt reuses the cache up to the answer and computes the rest.
  bool answers_apart = false;
  // The fewest tokens of a prompt that the engine computes as it computes many. Fewer come alone only where a
  // prompt has no more, or the decoder's prefill_chunk is below 2 * least_chunk - 1: so what the cache holds
  // and how a prompt is cut change no bit of the answer.
  int64_t least_chunk = 1;
};

// Called after each token with the request's index, the text that the token completed (valid UTF-8, often
// empty) and its id. Text held back when an answer is cancelled comes in one more call with token id -1.
// Returning true ends that answer ("cancelled"), without further calls for it.
using TextCallback = std::function<bool(int64_t index, const std::string& piece, int32_t token_id)>;

// The generation loop: prefill in chunks, row by row, then batched decode steps. An answer does not depend on
// the chunk size, on the rest of the batch or on what the cache held before, but for the order in which a
// decoder adds numbers up.
//
// A decode step feeds the tokens that the one before chose; where the decoder has room for two steps, the
// next one runs while this loop looks at the last one's text and stops. With Request::prompt_lookup, a row
// whose next tokens can be guessed gets a step of its own that feeds the guess, too, and keeps what the
// sampler would have chosen anyway.
class Generator {
 public:
  // Throws InputError for a decoder of another model.
  Generator(std::shared_ptr<Decoder> decoder, std::shared_ptr<const TokenText> token_text,
            const DecoderSettings& settings);

  // Answers the requests, as many at a time as the cache has rows: when an answer ends, the next request
  // takes its row, or the last row moves there. Results come in the order of the requests. All requests are
  // checked before anything runs: InputError, PromptTooLongError. What the decoder or the callback throws
  // passes through; the cache then holds what had been computed, and the generator can be used again.
  std::vector<Result> generate(const std::vector<const Request*>& requests, const TextCallback& on_text,
                               const CancelToken* cancel);

  // How many leading tokens of this request's prompt some cache row already holds, so that they need not be
  // computed when it is the first of the next call. Visuals that lie wholly before that need no embeddings.
  // Throws Error while a generation runs, since that changes the answer.
  int64_t cached_prefix(const Request& request) const;

 private:
  class Batch;

  // A row of the cache and how much of a prompt it holds.
  struct CachedPrefix {
    int64_t row, length;
  };

  void check(const Request& request, bool may_use_cache) const;
  CachedPrefix find_prefix(const Prompt& prompt, int64_t preferred_row) const;

  std::shared_ptr<Decoder> decoder_;
  std::shared_ptr<CacheRows> cache_;
  std::shared_ptr<const TokenText> token_text_;
  DecoderSettings settings_;
};

}  // namespace qwen2vl
