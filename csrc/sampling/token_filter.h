#pragma once

#include <cstdint>
#include <vector>

#include "sampling/logits.h"
#include "sampling/sampling_options.h"
#include "sampling/softmax.h"

namespace qwen2vl {

// Which tokens temperature, top_k, top_p and min_p leave. All of them keep the most likely ones, so that the
// answer is a cutoff in the order of preference, found without sorting the vocabulary. Owns its scratch
// memory.
class TokenFilter {
 public:
  explicit TokenFilter(int64_t vocab);

  // logits [vocab], usable (see Peak), `peak` their largest. Rules as transformers' warpers, in their order.
  Cutoff cutoff(const float* logits, float peak, const SamplingOptions& options);

 private:
  Cutoff top_p_cutoff(const float* logits, float peak, float inverse_temperature, double top_p, Cutoff above);

  int64_t vocab_;
  std::vector<TokenLogit> candidates_;
  std::vector<double> block_sums_;
};

}  // namespace qwen2vl
