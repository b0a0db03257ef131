#include <math.h>

#include <cstdint>
#include <vector>

#include "linear/device_linear.h"

namespace qwen2vl::cpu {

namespace {

std::vector<float> normalized_row(const LinearStep& step, int64_t row) {
  std::vector<float> x(step.inputs);
  double squares = 0;
  for (int64_t k = 0; k < step.inputs; ++k) {
    x[k] = load_float(step.x, step.type, row * step.inputs + k);
    squares += static_cast<double>(x[k]) * x[k];
  }
  if (step.norm == nullptr) return x;
  const auto scale =
      static_cast<float>(1.0 / sqrt(squares / static_cast<double>(step.inputs) + step.epsilon));
  for (int64_t k = 0; k < step.inputs; ++k) {
    x[k] = rounded(x[k] * scale * load_float(step.norm, step.type, k), step.type);
  }
  return x;
}

float product(const LinearStep& step, const DeviceMatrix& matrix, const std::vector<float>& x, int64_t n) {
  if (n >= matrix.outputs) return 0;
  double sum = 0;
  for (int64_t k = 0; k < step.inputs; ++k) sum += x[k] * linear_weight(step, matrix, n, k);
  return static_cast<float>(sum);
}

}  // namespace

void linear(const LinearStep& step) {
  for (int64_t row = 0; row < step.rows; ++row) {
    const std::vector<float> x = normalized_row(step, row);
    for (int32_t m = 0; m < (step.gated ? 1 : step.matrices); ++m) {
      const DeviceMatrix& matrix = step.matrix[m];
      for (int64_t unit = 0; unit < output_units(step, m); ++unit) {
        const OutputPair pair = step.gated ? OutputPair{unit, unit} : output_pair(step, m, unit);
        const float second =
            step.gated ? product(step, step.matrix[1], x, unit) : product(step, matrix, x, pair.second);
        finish_pair(step, step.type, m, row, pair, product(step, matrix, x, pair.first), second);
      }
    }
  }
}

}  // namespace qwen2vl::cpu
