#pragma once

#include <algorithm>

#include "integer/quantize.h"
#include "onnxruntime/operator.h"
#include "onnxruntime/shapes.h"

namespace qwen2vl::ort {

// What is left to do after an int8 product: x float32 [.., N] * scale [.., 1] (+ bias [N]) (+ added [.., N])
// in one pass.
class ScaleTokensOperator {
 public:
  static constexpr const char* kName = "ScaleTokens";
  static constexpr Port kInputs[] = {{kFloat}, {kFloat}, {kFloat, true}, {kFloat, true}};
  static constexpr Port kOutputs[] = {{kFloat}};

  ScaleTokensOperator(const Api&, const KernelInfo*) : kernels_(quantize_kernels()) {}

  void compute(const Call& call) const {
    const auto shape = call.shape(0);
    const int64_t n = shape.back(), rows = rows_of(shape);
    const auto *x = call.data<float>(0), *scale = call.data<float>(1), *bias = call.data<float>(2),
               *added = call.data<float>(3);
    auto* y = call.output<float>(0, shape);
    const int64_t rows_a_task = std::max<int64_t>(1, kNumbersATask / n);
    call.parallel((rows + rows_a_task - 1) / rows_a_task, [&](size_t task) {
      const int64_t first = task * rows_a_task;
      for (int64_t r = first; r < std::min(first + rows_a_task, rows); ++r) {
        Activation activation{x + r * n, scale[r], bias};
        if (added != nullptr) activation.added = added + r * n;
        kernels_.activate(activation, n, y + r * n);
      }
    });
  }

 private:
  const QuantizeKernels& kernels_;
};

}  // namespace qwen2vl::ort
