#pragma once

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
    parallel_rows(call, rows, n, [&](int64_t r) {
      Activation activation{x + r * n, scale[r], bias};
      if (added != nullptr) activation.added = added + r * n;
      kernels_.activate(activation, n, y + r * n);
    });
  }

 private:
  const QuantizeKernels& kernels_;
};

}  // namespace qwen2vl::ort
