#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/error.h"

namespace qwen2vl::cuda {

// Calls body(index) for every index in [0, count), each on one thread.
template <typename Body>
__global__ void __launch_bounds__(256) for_each_kernel(int64_t count, Body body) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; index < count; index += step) {
    body(index);
  }
}

template <typename Body>
void for_each(int64_t count, Body body, cudaStream_t stream, const char* what) {
  if (count <= 0) return;
  constexpr int64_t kThreads = 256, kMostBlocks = 4096;
  const auto blocks = static_cast<unsigned>(std::min((count + kThreads - 1) / kThreads, kMostBlocks));
  for_each_kernel<<<blocks, kThreads, 0, stream>>>(count, body);
  check(cudaGetLastError(), what);
}

}  // namespace qwen2vl::cuda
