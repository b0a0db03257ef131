// The functions of cuBLAS that csrc/ uses, as far as it uses them.

#include <vector>

#include "common/float_type.h"
#include "memory.h"
#include "stream.h"

namespace {

struct Handle {
  cudaStream_t stream = nullptr;
  bool has_stream = false;
};

qwen2vl::FloatType float_type(int data_type) {  // cudaDataType_t
  constexpr int kFloat16 = 2, kBFloat16 = 14;
  return data_type == kBFloat16  ? qwen2vl::FloatType::kBFloat16
         : data_type == kFloat16 ? qwen2vl::FloatType::kFloat16
                                 : qwen2vl::FloatType::kFloat32;
}

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int cublasCreate_v2(void** handle) {
  *handle = new Handle{};
  return 0;
}
__attribute__((visibility("default"))) int cublasSetStream_v2(void* handle, cudaStream_t stream) {
  *static_cast<Handle*>(handle) = {stream, true};
  return 0;
}
// After the stream, which takes a workspace away again.
__attribute__((visibility("default"))) int cublasSetWorkspace_v2(void* handle, void* workspace,
                                                                 size_t bytes) {
  constexpr int kInvalidValue = 7;
  const bool usable = emulated_cuda::Memory::one().holds(workspace, bytes);
  return usable && static_cast<Handle*>(handle)->has_stream ? 0 : kInvalidValue;
}
__attribute__((visibility("default"))) int cublasDestroy_v2(void* handle) {
  delete static_cast<Handle*>(handle);
  return 0;
}

__attribute__((visibility("default"))) int cublasGemmEx(void* handle, int turned, int, int m, int n, int k,
                                                        const void*, const void* w, int type, int,
                                                        const void* x, int, int, const void*, void* y,
                                                        int result_type, int, int, int) {
  using namespace qwen2vl;
  const FloatType format = float_type(type), result_format = float_type(result_type);
  const std::lock_guard<std::recursive_mutex> lock(emulated_cuda::gpu());
  // Column by column: C [m, n] = A [m, k] (or A^T, turned) B [k, n].
  return emulated_cuda::enqueue(static_cast<Handle*>(handle)->stream,
                                {[=] {
                                   std::vector<float> column(m);
                                   for (int64_t j = 0; j < n; ++j) {
                                     column.assign(m, 0.0f);
                                     for (int64_t l = 0; l < k; ++l) {
                                       const float factor = load_float(x, format, j * k + l);
                                       for (int64_t i = 0; i < m; ++i) {
                                         column[i] +=
                                             factor * load_float(w, format, turned ? i * k + l : l * m + i);
                                       }
                                     }
                                     for (int64_t i = 0; i < m; ++i)
                                       store_float(y, result_format, j * m + i, column[i]);
                                   }
                                 },
                                 nullptr, true});
}

}  // extern "C"
