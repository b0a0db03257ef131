#pragma once

#include <cstdint>
#include <functional>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// Those of the thread that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// Every thread of the block must come here.
void __syncthreads();
uint32_t __shfl_xor_sync(uint32_t mask, uint32_t value, int lane_mask);
// Only one thread runs at a time, and is exchanged for another at the two calls above only.
inline unsigned long long atomicAdd(unsigned long long* target, unsigned long long value) {
  const unsigned long long before = *target;
  *target += value;
  return before;
}
inline int atomicAdd(int* target, int value) {
  const int before = *target;
  *target += value;
  return before;
}

// Blocks run one after the other, and see all that was written before.
inline void __threadfence() {}

namespace emulated_cuda {

// Runs a kernel's body for every thread of a grid, block by block: a block's threads take turns, from one
// barrier to the next, in another order each time, so that what relies on an order shows. Throws
// std::runtime_error when threads wait for each other forever, or some return while others wait.
void run_grid(dim3 grid, dim3 block, const std::function<void()>& body);

}  // namespace emulated_cuda
