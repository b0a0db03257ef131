#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/error.h"

namespace qwen2vl::cuda {

// Queues kernel<<<blocks, threads>>>(arguments...) on a stream. `what` names it, for a person. (In this form
// a C++ compiler takes it, too: tests/emulated_cuda.)
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, cudaStream_t stream, const char* what,
            const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), what);
}

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
  launch(for_each_kernel<Body>, blocks, kThreads, stream, what, count, body);
}

}  // namespace qwen2vl::cuda
