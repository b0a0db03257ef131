#include "attention/score_numbers.h"

#include <algorithm>
#include <cmath>

namespace qwen2vl {

namespace {

// Standard deviation of a score's error, in units of the softmax's exponent, up to which codes are taken: a
// weight is then within 5% of its own, either way, and the sum of many much nearer.
constexpr double kLargestError = 0.05;

// Means over vectors.
struct Sizes {
  double square = 0;        // of the length squared
  double scale_square = 0;  // of the square of what codes count in
};

Sizes sizes(const float* vectors, const float* centre, int64_t count, int64_t dim) {
  Sizes found;
  for (int64_t i = 0; i < count; ++i, vectors += dim) {
    float square = 0, peak = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const float value = vectors[d] - (centre == nullptr ? 0 : centre[d]);
      square += value * value;
      peak = std::max(peak, std::abs(value));
    }
    found.square += square / static_cast<double>(count);
    found.scale_square += peak / 127.0 * peak / 127.0 / static_cast<double>(count);
  }
  return found;
}

}  // namespace

ScoreNumbers choose_score_numbers(const float* queries, const float* keys, int64_t count, int64_t dim) {
  ScoreNumbers found{};
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t d = 0; d < dim; ++d) found.centre[d] += keys[i * dim + d] / static_cast<float>(count);
  }
  const Sizes q = sizes(queries, nullptr, count, dim), k = sizes(keys, found.centre, count, dim);
  // A code's error is spread evenly over what it counts in, which makes its variance scale^2 / 12.
  const double variance =
      (q.scale_square * k.square + k.scale_square * q.square) / 12 / static_cast<double>(dim);
  found.codes = std::sqrt(variance) <= kLargestError;  // NaN is not
  return found;
}

}  // namespace qwen2vl
