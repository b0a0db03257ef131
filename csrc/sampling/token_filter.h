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

  // logits [vocab], usable (see Peak), `peak` their largest; block_maxima as find_peak wrote them. Rules as
  // transformers' warpers, in their order.
  Cutoff cutoff(const float* logits, const float* block_maxima, float peak, const SamplingOptions& options);

 private:
  // What top_p chooses from.
  struct Row {
    const float* logits;
    const float* block_maxima;
    float peak, inverse_temperature;
    Cutoff above;  // what top_k left
  };

  Cutoff top_p_cutoff(const Row& row, double top_p);
  // Makes candidates_ the tokens that top_k left with logits from `floor` on, unless they are more than
  // `most`; returns whether they were not.
  bool gather(const Row& row, float floor, size_t most);
  // Makes candidates_ the tokens of that slice of logits in which the sum of weights, best token first,
  // reaches `needed`; returns the sum of those before it.
  double gather_crossing(const Row& row, double needed);

  int64_t vocab_;
  std::vector<TokenLogit> candidates_;
  std::vector<double> block_sums_;
  std::vector<double> slice_sums_;  // of gather_crossing
};

}  // namespace qwen2vl
