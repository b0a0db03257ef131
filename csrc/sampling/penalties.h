#pragma once

#include <cstdint>
#include <vector>

#include "common/host_device.h"
#include "sampling/sampling_options.h"

namespace qwen2vl {

// The logit of a token that the prompt or the answer already has, `times` of them in the answer. The
// penalties are those of SamplingOptions.
QWEN2VL_HOST_DEVICE float penalized_logit(float logit, int32_t times, float repetition_penalty,
                                          double presence_penalty, double frequency_penalty) {
  logit = logit < 0 ? logit * repetition_penalty : logit / repetition_penalty;
  if (times > 0) logit -= static_cast<float>(presence_penalty + frequency_penalty * times);
  return logit;
}

// The tokens of one request so far, and what its penalties do to the logits.
class Penalties {
 public:
  // prompt [tokens], ids within vocab.
  Penalties(const SamplingOptions& options, int64_t vocab, const int32_t* prompt, int64_t tokens);

  // One more token of the answer.
  void count(int32_t id);
  // Changes logits [vocab] in place: repetition_penalty on every token of prompt or answer, then
  // presence_penalty and frequency_penalty on tokens of the answer.
  void apply(float* logits) const;

 private:
  void see(int32_t id);

  SamplingOptions options_;
  std::vector<int32_t>
      answer_counts_;          // [vocab], -1 for tokens not seen at all, 0 for those of the prompt only
  std::vector<int32_t> seen_;  // the ids with a count, each once
};

}  // namespace qwen2vl
