#include "cuda/onnx_api.h"

#include "cuda/linear_operator.h"

namespace qwen2vl::cuda::onnx {

namespace {

const Api* handed_over = nullptr;

}  // namespace

const Api& api() {
  if (handed_over == nullptr) throw DeviceError("ONNX Runtime has not handed over its C API");
  return *handed_over;
}

Status* add_operators(SessionOptions* options) {
  using ort::Operator;
  using ort::Provider;
  constexpr FloatType kFloat32 = FloatType::kFloat32, kBFloat16 = FloatType::kBFloat16,
                      kFloat16 = FloatType::kFloat16;
  static ort::Domain* domain = nullptr;
  return ort::add_operators(
      api(), options,
      {
          &Operator<DeviceLinearOperator<kFloat32, PlainMatrices>, Provider::kCuda>::definition(),
          &Operator<DeviceLinearOperator<kBFloat16, PlainMatrices>, Provider::kCuda>::definition(),
          &Operator<DeviceLinearOperator<kFloat16, PlainMatrices>, Provider::kCuda>::definition(),
          &Operator<DeviceLinearOperator<kFloat32, BlockMatrices>, Provider::kCuda>::definition(),
          &Operator<DeviceLinearOperator<kBFloat16, BlockMatrices>, Provider::kCuda>::definition(),
          &Operator<DeviceLinearOperator<kFloat16, BlockMatrices>, Provider::kCuda>::definition(),
#ifdef QWEN2VL_EMULATED_CUDA  // ONNX Runtime's CPU provider stands in for the other one there
          &Operator<DeviceLinearOperator<kFloat32, PlainMatrices>>::definition(),
          &Operator<DeviceLinearOperator<kFloat32, BlockMatrices>>::definition(),
#endif
      },
      &domain);
}

// The one way to the C API of the library inside Python's extension module, which exports nothing: it opens
// this module as a library of operators. (The wheel's other copy, libonnxruntime.so, can't share the
// process's CUDA provider with it.)
extern "C" __attribute__((visibility("default"))) Status* RegisterCustomOps(SessionOptions* options,
                                                                            const ort::ApiBase* base) {
  handed_over = base->get_api(ort::kApiVersion);
  return handed_over == nullptr ? nullptr : add_operators(options);
}

}  // namespace qwen2vl::cuda::onnx
