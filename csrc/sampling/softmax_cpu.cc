#include <algorithm>

#include "common/avx2_clone.h"
#include "sampling/softmax.h"

namespace qwen2vl {

QWEN2VL_AVX2_CLONE double softmax_sum(const float* logits, const float* block_maxima, int64_t vocab,
                                      float peak, float inverse_temperature, Cutoff cutoff,
                                      double* block_sums) {
  double total = 0;
  for (int64_t begin = 0, block = 0; begin < vocab; begin += kLogitBlock, ++block) {
    const int64_t end = std::min(begin + kLogitBlock, vocab);
    if (!(block_maxima[block] >= cutoff.logit)) {  // most blocks when a filter is on
      block_sums[block] = 0;
      continue;
    }
    float lanes[kLogitLanes] = {};
    int64_t i = begin;
    for (; i + kLogitLanes <= end; i += kLogitLanes) {
      for (int64_t lane = 0; lane < kLogitLanes; ++lane) {
        const float logit = logits[i + lane];
        const bool keep = above_cutoff(logit, static_cast<int32_t>(i + lane), cutoff);
        lanes[lane] += keep ? exp_nonpositive((logit - peak) * inverse_temperature) : 0.0f;
      }
    }
    double sum = 0;
    for (const float lane : lanes) sum += lane;
    for (; i < end; ++i) {
      if (above_cutoff(logits[i], static_cast<int32_t>(i), cutoff))
        sum += exp_nonpositive((logits[i] - peak) * inverse_temperature);
    }
    block_sums[block] = sum;
    total += sum;
  }
  return total;
}

int32_t softmax_find(const float* logits, int64_t vocab, float peak, float inverse_temperature, Cutoff cutoff,
                     const double* block_sums, double target) {
  const int64_t blocks = logit_blocks(vocab);
  double running = 0;
  int64_t chosen = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (block_sums[block] == 0) continue;
    chosen = block;
    if (running + block_sums[block] > target) break;
    running += block_sums[block];
  }
  int32_t last = 0;
  for (int64_t i = chosen * kLogitBlock; i < std::min((chosen + 1) * kLogitBlock, vocab); ++i) {
    if (!above_cutoff(logits[i], static_cast<int32_t>(i), cutoff)) continue;
    const float weight = exp_nonpositive((logits[i] - peak) * inverse_temperature);
    if (weight == 0) continue;
    last = static_cast<int32_t>(i);
    running += weight;
    if (running > target) break;  // else: summed one by one, the block came out a rounding short of its sum
  }
  return last;
}

}  // namespace qwen2vl
