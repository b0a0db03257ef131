#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cache/cache_rows.h"
#include "common/error.h"
#include "generate/prompt.h"
#include "generate/request.h"
#include "sampling/sampler.h"

namespace qwen2vl {

// A row of a decode step: the token to feed, the positions that its cache row holds, and the token's own
// rotary position (the same on all three axes).
struct DecodeRow {
  int32_t token;
  int64_t past_length;
  int64_t position;
};

// The decoder as the generation loop sees it: it fills a step's inputs, runs the engine and chooses tokens,
// on the CPU (HostDecoder) or with everything between two tokens on a device (DeviceDecoder). Rows are those
// of its KV cache. Called from one thread at a time.
class Decoder {
 public:
  virtual ~Decoder() = default;

  const std::shared_ptr<CacheRows>& cache() const { return cache_; }
  // The most tokens of a prompt that one run takes: as asked for, but no more than the cache has room for.
  int64_t prefill_chunk() const { return prefill_chunk_; }

  // Throws InputError unless it is made for this model.
  virtual void check(int64_t hidden, int64_t vocab) const = 0;
  // Decode steps that may be under way at once. With 2, the next step runs while the loop looks at the last
  // one's tokens; what it computes for a row that turns out to be finished is thrown away.
  virtual int64_t depth() const = 0;

  // A new answer in `row`: its sampling starts.
  virtual void start(int64_t row, const Request& request) = 0;
  // Runs the prompt's tokens [begin, end), at most a prefill chunk, behind the `begin` that the row holds.
  virtual void prefill(int64_t row, const Request& request, const Prompt& prompt, int64_t begin,
                       int64_t end) = 0;
  // The answer's first token, after its last chunk. Throws UnusableLogitsError.
  virtual SampledToken first_token(int64_t row) = 0;
  // Row `to` goes on with the answer of row `from`.
  virtual void move(int64_t from, int64_t to) = 0;

  // Starts decoding rows [0, rows.size()): from now on each step feeds what the one before chose.
  virtual void begin(const std::vector<DecodeRow>& rows) = 0;
  // Queues a step of all rows.
  virtual void launch() = 0;
  // Waits for the oldest queued step.
  virtual void wait() = 0;
  // The row's token of the step waited for. Throws UnusableLogitsError.
  virtual SampledToken token(int64_t row) = 0;
  // Forgets the steps under way, after a failure. Never throws.
  virtual void drain() noexcept = 0;

  // The longest draft that run_draft takes, 0 for a decoder that checks none.
  virtual int64_t longest_draft() const { return 0; }
  // A step of one row, while none is under way: feeds the row's token and behind it a guess at those that
  // follow, 1 to longest_draft() of them, and waits. token(row) then gives the next token, and as long as it
  // is the one that the draft holds there, may be called for one more, up to draft.size() + 1 tokens. Keys
  // and values of drafted tokens that were not given back lie beyond the row's end.
  virtual void run_draft(int64_t /*row*/, const std::vector<int32_t>& /*draft*/) {
    throw Error("this decoder checks no drafts");
  }

 protected:
  // Throws InputError for chunks of less than one token.
  Decoder(std::shared_ptr<CacheRows> cache, int64_t prefill_chunk);

 private:
  std::shared_ptr<CacheRows> cache_;
  int64_t prefill_chunk_;
};

}  // namespace qwen2vl
