#pragma once

#include <cstdint>

#include "common/float_type.h"
#include "cuda/stream.h"

namespace qwen2vl::cuda {

// y = x W, [M, K] by [K, N], row by row in memory, all of one type, sums in float32. `transposed`: W lies as
// [N, K].
struct Gemm {
  FloatType type;
  int64_t m, n, k;
  const void* x;
  const void* w;
  bool transposed;
  void* y;
};

// Queues it. Throws DeviceError: cuBLAS, which ONNX Runtime's CUDA provider has loaded, is not there or
// refuses.
void gemm(const Gemm& product, StreamHandle stream);

// Frees what products on a stream have taken, when the stream ends.
void forget_products(StreamHandle stream) noexcept;

}  // namespace qwen2vl::cuda
