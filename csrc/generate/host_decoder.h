#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "embedding/embedding_table.h"
#include "generate/decoder.h"
#include "generate/executor.h"
#include "generate/prompt_lookup.h"
#include "rope/rope_table.h"

namespace qwen2vl {

// The decoder whose inputs are filled and whose tokens are chosen on the CPU: an Executor runs the steps.
// Between two tokens it allocates nothing of its own: a step writes the inputs into the step's fixed buffers.
class HostDecoder : public Decoder {
 public:
  // cache: the one that the executor reads and writes. Throws InputError where its heads are not rope's.
  HostDecoder(std::shared_ptr<Executor> executor, std::shared_ptr<CacheRows> cache,
              std::shared_ptr<const EmbeddingTable> embedding, const RopeTable& rope, int64_t prefill_chunk);

  void check(int64_t hidden, int64_t vocab) const override;
  int64_t depth() const override { return 1; }
  void start(int64_t row, const Request& request) override;
  void prefill(int64_t row, const Request& request, const Prompt& prompt, int64_t begin,
               int64_t end) override;
  SampledToken first_token(int64_t row) override;
  void move(int64_t from, int64_t to) override;
  void begin(const std::vector<DecodeRow>& rows) override;
  void launch() override;
  void wait() override {}
  SampledToken token(int64_t row) override;
  void drain() noexcept override {}
  int64_t longest_draft() const override { return PromptLookup::kLongest; }
  void run_draft(int64_t row, const std::vector<int32_t>& draft) override;

 private:
  // Runs decode rows [first, first + count), each with its token and the draft behind it; with a draft, one
  // row.
  void run_rows(int64_t first, int64_t count, const std::vector<int32_t>& draft);

  std::shared_ptr<Executor> executor_;
  std::shared_ptr<const EmbeddingTable> embedding_;
  RopeTable rope_;
  std::shared_ptr<DecoderStep> step_;
  std::vector<std::optional<Sampler>> samplers_;  // [rows]
  std::vector<DecodeRow> rows_;                   // of the decode step
  std::vector<int32_t> ids_;                      // of the decode step
  int64_t given_ = 0;                             // tokens of the draft's row since it ran
};

}  // namespace qwen2vl
