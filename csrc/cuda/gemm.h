#pragma once

#include <cstdint>

#include "common/float_type.h"
#include "cuda/stream.h"

namespace qwen2vl::cuda {

// y [M, N] = x [M, K] W [N, K]^T, row by row in memory, sums in float32.
struct Gemm {
  FloatType type, result_type;  // of x and W, of y: the same or float32
  int64_t m, n, k;
  const void* x;
  const void* w;
  void* y;
};

// Queues it. Throws DeviceError: cuBLAS, which ONNX Runtime's CUDA provider has loaded, is not there or
// refuses.
void gemm(const Gemm& product, StreamHandle stream);

// Frees what products on a stream have taken, when the stream ends.
void forget_products(StreamHandle stream) noexcept;

}  // namespace qwen2vl::cuda
