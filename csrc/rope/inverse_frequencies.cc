#include "rope/inverse_frequencies.h"

#include <cmath>

namespace qwen2vl {

void inverse_frequencies(int64_t dim, float theta, float* inv_freq) {
  for (int64_t i = 0; i < dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(dim);
    inv_freq[i] =
        1.0f / static_cast<float>(std::pow(static_cast<double>(theta), static_cast<double>(exponent)));
  }
}

}  // namespace qwen2vl
