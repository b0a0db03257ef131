#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/capabilities.h"
#include "cuda/error.h"

namespace qwen2vl::cuda {

// When a kernel starts. Early: as soon as those in front of it have started and leave room, where the GPU
// can. Every thread of it then calls wait_for_kernels_before(), and until that returns touches nothing that
// the kernels since the last one in turn write: weights are there, and what was there before a step began.
enum class Start { kInTurn, kEarly };

// In the kernel: what is queued in front of it is done from here on.
__device__ inline void wait_for_kernels_before() {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}

// In the kernel: one that may start early need not wait until this one's blocks are gone.
__device__ inline void let_the_next_start() {
#if !defined(__CUDACC__) || __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// A block's threads, and the shared memory that it gets besides what its kernel declares.
struct Threads {
  dim3 count;
  size_t shared_bytes = 0;

  Threads(int count, size_t shared_bytes = 0)
      : count(static_cast<unsigned>(count)), shared_bytes(shared_bytes) {}
};

// In the kernel: that memory. Its address is a multiple of 64 bytes.
__device__ inline void* dynamic_shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(64) char memory[];
  return memory;
#else
  return emulated_cuda::dynamic_shared_memory();
#endif
}

// Blocks that a multiprocessor takes at once, at least one.
template <typename... Parameters>
int blocks_each(void (*kernel)(Parameters...), Threads threads) {
  allow_shared_memory(reinterpret_cast<const void*>(kernel), threads.shared_bytes);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, static_cast<int>(threads.count.x),
                                                      threads.shared_bytes),
        "asking for a kernel's room");
  return std::max(blocks, 1);
}

// Queues kernel<<<blocks, threads>>>(arguments...) on a stream. `what` names it, for a person. (In this form
// a C++ compiler takes it, too: tests/emulated_cuda.)
template <typename... Parameters, typename... Arguments>
void launch(Start start, void (*kernel)(Parameters...), dim3 blocks, Threads threads, cudaStream_t stream,
            const char* what, const Arguments&... arguments) {
  allow_shared_memory(reinterpret_cast<const void*>(kernel), threads.shared_bytes);
  const bool starts_early = start == Start::kEarly && capabilities().early_starts;
  if (starts_early) share_multiprocessors(reinterpret_cast<const void*>(kernel));
  cudaLaunchAttribute early{};  // "programmatic dependent launch"
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = threads.count;
  config.dynamicSmemBytes = threads.shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = starts_early ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), what);
}
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, Threads threads, cudaStream_t stream,
            const char* what, const Arguments&... arguments) {
  launch(Start::kInTurn, kernel, blocks, threads, stream, what, arguments...);
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
