#pragma once

#include "common/scratch.h"
#include "integer/quantize.h"
#include "onnxruntime/operator.h"
#include "onnxruntime/shapes.h"

namespace qwen2vl::ort {

// x float32 [.., K] -> codes uint8 [.., K] with zero point 128, scale float32 [.., 1]: integer/quantize.h.
// Optional inputs, in this order: x's scale [.., 1], bias [K], other [.., K], other's scale [.., 1].
// Attribute: slope, of the sigmoid.
class QuantizeTokensOperator {
 public:
  static constexpr const char* kName = "QuantizeTokens";
  static constexpr Port kInputs[] = {
      {kFloat}, {kFloat, true}, {kFloat, true}, {kFloat, true}, {kFloat, true}};
  static constexpr Port kOutputs[] = {{kUInt8}, {kFloat}};

  QuantizeTokensOperator(const Api& api, const KernelInfo* info)
      : kernels_(quantize_kernels()), slope_(float_attribute(api, info, "slope")) {}

  void compute(const Call& call) const {
    auto shape = call.shape(0);
    const int64_t k = shape.back(), rows = rows_of(shape);
    const auto *x = call.data<float>(0), *scale = call.data<float>(1), *bias = call.data<float>(2),
               *other = call.data<float>(3), *other_scale = call.data<float>(4);
    auto* codes = call.output<uint8_t>(0, shape);
    shape.back() = 1;
    auto* code_scales = call.output<float>(1, shape);
    const bool plain = scale == nullptr && bias == nullptr && other == nullptr && slope_ == 0;
    parallel_rows(call, rows, k, [&](int64_t r) {
      const float* y = x + r * k;
      if (!plain) {
        auto* activated = static_cast<float*>(thread_scratch(k * sizeof(float)));
        kernels_.activate(
            {y, scale == nullptr ? 1 : scale[r], bias, slope_, other == nullptr ? nullptr : other + r * k,
             other_scale == nullptr ? 1 : other_scale[r]},
            k, activated);
        y = activated;
      }
      kernels_.quantize(y, k, k, 128, codes + r * k, code_scales + r);
    });
  }

 private:
  const QuantizeKernels& kernels_;
  const float slope_;
};

}  // namespace qwen2vl::ort
