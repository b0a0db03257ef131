#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"
#include "sampling/logits.h"

namespace qwen2vl {

// e^x for x <= 0, to about one unit in the last place, 0 below -87. Plain arithmetic without branches: loops
// over it vectorise, and a GPU twin can use it as it is.
QWEN2VL_HOST_DEVICE float exp_nonpositive(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  // Rounds to an integer by pushing the fraction out of the mantissa.
  const float shifted = clamped * 1.44269504f + 12582912.0f;
  const float power = shifted - 12582912.0f;
  const float r = (clamped - power * 0.693359375f) + power * 2.12194440e-4f;  // log(2) in two parts
  float polynomial = 1.9875691500e-4f;
  polynomial = polynomial * r + 1.3981999507e-3f;
  polynomial = polynomial * r + 8.3334519073e-3f;
  polynomial = polynomial * r + 4.1665795894e-2f;
  polynomial = polynomial * r + 1.6666665459e-1f;
  polynomial = polynomial * r + 5.0000001201e-1f;
  polynomial = polynomial * (r * r) + r + 1.0f;
  const int32_t scale_bits = (static_cast<int32_t>(power) + 127) << 23;
  float scale;
  std::memcpy(&scale, &scale_bits, sizeof(scale));
  return x < -87.0f ? 0.0f : polynomial * scale;
}

// Which tokens take part: those with a logit above `logit`, and of those equal to it the ids up to `last_id`.
struct Cutoff {
  float logit;
  int32_t last_id;
};

// Whether the token takes part. Without branches, either.
QWEN2VL_HOST_DEVICE bool above_cutoff(float logit, int32_t id, Cutoff cutoff) {
  return (logit > cutoff.logit) | ((logit == cutoff.logit) & (id <= cutoff.last_id));
}

// The weight exp((logit - peak) * inverse_temperature) of every token above the cutoff summed, in order of
// ids. block_maxima as find_peak wrote them; block_sums [logit_blocks(vocab)] gets the partial sums.
double softmax_sum(const float* logits, const float* block_maxima, int64_t vocab, float peak,
                   float inverse_temperature, Cutoff cutoff, double* block_sums);

// The token at which the running sum of weights (same order) first exceeds `target`, which is in [0, total).
// block_sums as softmax_sum wrote them.
int32_t softmax_find(const float* logits, int64_t vocab, float peak, float inverse_temperature, Cutoff cutoff,
                     const double* block_sums, double target);

}  // namespace qwen2vl
