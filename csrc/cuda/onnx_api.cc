#include "cuda/onnx_api.h"

namespace qwen2vl::cuda::onnx {

namespace {

const Api* handed_over = nullptr;

}  // namespace

const Api& api() {
  if (handed_over == nullptr) throw DeviceError("ONNX Runtime has not handed over its C API");
  return *handed_over;
}

// The one way to the C API of the library inside Python's extension module, which exports nothing: it opens
// this module as if it were a library of operators. (The wheel's other copy, libonnxruntime.so, can't share
// the process's CUDA provider with it.)
extern "C" __attribute__((visibility("default"))) Status* RegisterCustomOps(SessionOptions*,
                                                                            const ort::ApiBase* base) {
  handed_over = base->get_api(ort::kApiVersion);
  return nullptr;
}

}  // namespace qwen2vl::cuda::onnx
