#include "cuda/onnx_api.h"

namespace qwen2vl::cuda::onnx {

namespace {

void* const* table = nullptr;

}  // namespace

void* const* api() {
  if (table == nullptr) throw DeviceError("ONNX Runtime has not handed over its C API");
  return table;
}

// The one way to the C API of the library inside Python's extension module, which exports nothing: it opens
// this module as if it were a library of operators. (The wheel's other copy, libonnxruntime.so, can't share
// the process's CUDA provider with it.)
extern "C" __attribute__((visibility("default"))) Status* RegisterCustomOps(SessionOptions*,
                                                                            const ApiBase* base) {
  table = base->get_api(kApiVersion);
  return nullptr;
}

}  // namespace qwen2vl::cuda::onnx
