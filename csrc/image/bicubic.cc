#include "image/bicubic.h"

#include <algorithm>
#include <cmath>

namespace qwen2vl {

namespace {

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

}  // namespace

BicubicAxis::BicubicAxis(int64_t input, int64_t output) : input(input), output(output) {
  const double scale = static_cast<double>(input) / static_cast<double>(output);
  const double filter_scale = std::max(scale, 1.0);
  const double support = 2.0 * filter_scale;
  taps = static_cast<int64_t>(std::ceil(support)) * 2 + 1;
  first.resize(output);
  count.resize(output);
  weights.assign(output * taps, 0);

  std::vector<double> exact(taps);
  for (int64_t x = 0; x < output; ++x) {
    const double center = (x + 0.5) * scale;
    // Truncation towards zero after adding a half, as C casts do there.
    const int64_t begin = std::max<int64_t>(0, static_cast<int64_t>(center - support + 0.5));
    const int64_t end = std::min<int64_t>(input, static_cast<int64_t>(center + support + 0.5));
    const double inverse = 1.0 / filter_scale;
    double total = 0.0;
    for (int64_t i = begin; i < end; ++i) {
      exact[i - begin] = bicubic((static_cast<double>(i) - center + 0.5) * inverse);
      total += exact[i - begin];
    }
    for (int64_t i = 0; i < end - begin; ++i) {
      const double weight = (total != 0.0 ? exact[i] / total : exact[i]) * (1 << kBicubicFractionBits);
      weights[x * taps + i] = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    first[x] = static_cast<int32_t>(begin);
    count[x] = static_cast<int32_t>(end - begin);
  }
}

}  // namespace qwen2vl
