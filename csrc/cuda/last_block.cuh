#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace qwen2vl::cuda {

// Adds one. What the block wrote before its last barrier is there for whoever counts later, and what those
// wrote who counted before is there for this block behind its next barrier.
__device__ inline int32_t count_up(int32_t* counter) {
#ifdef __CUDACC__
  int32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
#else
  return emulated_cuda::count_up(counter);
#endif
}

// Whether this block is the last of `blocks` that come here; the counter is 0 again then. All threads of the
// block call it, and what the others wrote before is there for the last.
__device__ inline bool is_last_block(int32_t* counter, int64_t blocks) {
  __shared__ int32_t is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = count_up(counter) == blocks - 1 ? 1 : 0;
    if (is_last) *counter = 0;
  }
  __syncthreads();
  return is_last != 0;
}

}  // namespace qwen2vl::cuda
