#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>

#include "accesses.h"

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
float __shfl_sync(uint32_t mask, float value, int lane);
void __syncwarp();
using std::min;
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
template <typename Value>
Value __ldcg(const Value* address) {
  if (reinterpret_cast<uintptr_t>(address) % sizeof(Value) != 0)
    throw std::logic_error("numbers that are loaded together lie at a multiple of their bytes");
  return *address;
}
// Bytes of x (0 to 3) and y (4 to 7), chosen by the four last digits of `choice`.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t choice) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<uint32_t>(bytes >> (choice >> 4 * i & 7) * 8 & 255) << 8 * i;
  return result;
}
unsigned long long atomicAdd(unsigned long long* target, unsigned long long value);
unsigned atomicAdd(unsigned* target, unsigned value);
int atomicAdd(int* target, int value);

// Of a kernel that may start early: what is in front of it is done, and its writes are seen, once this
// returns.
void cudaGridDependencySynchronize();
// Whatever may start early does so anyway.
inline void cudaTriggerProgrammaticLaunchCompletion() {}

namespace emulated_cuda {

// For what a warp does as one: what its lanes have brought, by their number, once all of them have come, to
// the same kind of instruction.
enum class Together { kBarrier, kShuffle, kMatrices, kProducts };
using Brought = std::array<uint32_t, 6>;
const Brought* exchange(Together kind, const Brought& mine);
unsigned lane();

// What the launch decided on, behind what the kernel declares.
void* dynamic_shared_memory();
// Both.
char* shared_memory();
size_t shared_memory_bytes();

// Adds one, acquires and releases: see csrc/cuda/last_block.cuh.
int32_t count_up(int32_t* counter);

// The products of csrc/cuda/tensor_core.cuh.
void load_matrices(uint32_t (&words)[4], const void* row);
void multiply_add(bool bfloat16, float (&sums)[4], const uint32_t (&first)[4], const uint32_t* second);

// Of a launch.
struct Shape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  size_t declared_bytes = 0;  // of shared memory that the kernel declares; of C++'s variables nothing
};

class Block;

// A kernel's run for every thread of a grid, block by block: a block's threads take turns, from one barrier
// to the next, in another order each time, so that what relies on an order shows.
class Grid {
 public:
  // early: it may start before its turn.
  Grid(const Shape& shape, std::function<void()> body, bool early);
  ~Grid();

  // Before its turn: lets one of its blocks run up to where that waits for the kernels before.
  void start(Order order);
  // The rest, or all of it. Throws std::runtime_error when threads wait for each other forever, some return
  // while others wait, one of a kernel that may start early never waits for those before, does what a GPU
  // refuses, or what accesses.h finds wrong.
  void run(Order order);
  bool early() const { return early_; }

 private:
  void begin(Block* block, uint64_t number, Order order) const;

  Shape shape_;
  std::function<void()> body_;
  bool early_;
  uint64_t blocks_, started_number_ = 0;
  std::unique_ptr<Block> started_;
};

}  // namespace emulated_cuda
