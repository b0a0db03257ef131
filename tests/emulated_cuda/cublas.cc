// The functions of cuBLAS that csrc/ uses, as far as it uses them.

#include <vector>

#include "common/float_type.h"
#include "memory.h"
#include "stream.h"

namespace {

struct Handle {
  cudaStream_t stream;
};

}  // namespace

extern "C" {

__attribute__((visibility("default"))) int cublasCreate_v2(void** handle) {
  *handle = new Handle{};
  return 0;
}
__attribute__((visibility("default"))) int cublasSetStream_v2(void* handle, cudaStream_t stream) {
  static_cast<Handle*>(handle)->stream = stream;
  return 0;
}
__attribute__((visibility("default"))) int cublasDestroy_v2(void* handle) {
  delete static_cast<Handle*>(handle);
  return 0;
}

__attribute__((visibility("default"))) int cublasGemmEx(void* handle, int turned, int, int m, int n, int k,
                                                        const void*, const void* w, int type, int,
                                                        const void* x, int, int, const void*, void* y, int,
                                                        int, int, int) {
  using namespace qwen2vl;
  constexpr int kFloat16 = 2, kBFloat16 = 14;
  const FloatType format = type == kBFloat16  ? FloatType::kBFloat16
                           : type == kFloat16 ? FloatType::kFloat16
                                              : FloatType::kFloat32;
  const std::lock_guard<std::recursive_mutex> lock(emulated_cuda::gpu());
  // Column by column: C [m, n] = A [m, k] (or A^T, turned) B [k, n].
  return emulated_cuda::enqueue_kernel(static_cast<Handle*>(handle)->stream, [=] {
    std::vector<float> column(m);
    for (int64_t j = 0; j < n; ++j) {
      column.assign(m, 0.0f);
      for (int64_t l = 0; l < k; ++l) {
        const float factor = load_float(x, format, j * k + l);
        for (int64_t i = 0; i < m; ++i) {
          column[i] += factor * load_float(w, format, turned ? i * k + l : l * m + i);
        }
      }
      for (int64_t i = 0; i < m; ++i) store_float(y, format, j * m + i, column[i]);
    }
  });
}

}  // extern "C"
