#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "generate/generator.h"
#include "generate/sequence.h"

namespace qwen2vl {

// One call of Generator::generate while it runs. active_[b] is the sequence in cache row b; rows [0, active)
// are in use without a gap, so that a decode step is one batch over the first rows of the cache.
class Generator::Batch {
 public:
  Batch(Generator& generator, const std::vector<const Request*>& requests, const TextCallback& on_text,
        const CancelToken* cancel);

  std::vector<Result> run();

 private:
  // Starts waiting requests in `row` until one is still unfinished after its first token; null when none is
  // left.
  std::unique_ptr<Sequence> start_next(int64_t row);
  // Fills the row with the prompt and chooses the first token. The sequence may be finished afterwards.
  void prefill(Sequence& sequence, int64_t row);
  // Where the chunk that begins there ends, in a prompt of so many tokens.
  int64_t chunk_end(int64_t begin, int64_t tokens) const;
  // Decodes all rows until an answer ends.
  void decode();
  void decode_steps();
  // The same for a decoder that checks drafts, when some request wants them.
  void decode_drafts();
  // Checks the drafts of those rows that have one worth a step of its own; whether all had.
  bool check_drafts();
  void check_draft(int64_t row, const std::vector<int32_t>& draft);
  // Takes the tokens of the step that was waited for.
  void take_step();
  // Counts `id`, which the step that ran fed to the row, among what the row holds.
  void append_fed(int64_t row, int32_t id);
  // Takes finished sequences out and closes the gaps.
  void compact();
  // Takes the sequence's next token, and reports its text.
  void accept(Sequence& sequence, SampledToken token);
  void cancel(Sequence& sequence);
  void keep_result(Sequence& sequence) { results_[sequence.index] = std::move(sequence.result); }
  bool cancelled() const { return cancel_ != nullptr && cancel_->cancelled(); }
  // Whether all rows want another token.
  bool goes_on() const;

  Generator& generator_;
  CacheRows& cache_;
  Decoder& decoder_;
  const std::vector<const Request*>& requests_;
  const TextCallback& on_text_;
  const CancelToken* cancel_;
  size_t next_request_ = 0;
  std::vector<std::unique_ptr<Sequence>> active_;
  std::vector<DecodeRow> decode_rows_;
  std::vector<Result> results_;
  std::string piece_;
};

}  // namespace qwen2vl
