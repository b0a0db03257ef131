#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace qwen2vl::cuda {

// A CUDA block as a team: see common/team.h. `scratch` is shared memory, 32 values of the largest type that
// is reduced (16 bytes each).
struct BlockTeam {
  struct alignas(16) Slot {
    char bytes[16];
  };
  Slot* scratch;  // [32]

  __device__ int rank() const { return static_cast<int>(threadIdx.x); }
  __device__ int size() const { return static_cast<int>(blockDim.x); }
  __device__ void sync() const { __syncthreads(); }

  template <typename T, typename Combine>
  __device__ T reduce(T value, Combine combine) const {
    static_assert(sizeof(T) <= sizeof(Slot), "values reduced by a team have at most 16 bytes");
    value = reduce_warp(value, combine);
    T* const partial = reinterpret_cast<T*>(scratch);
    constexpr int kStride = sizeof(Slot) / sizeof(T);  // 16 bytes apart
    const int warp = rank() / 32, warps = (size() + 31) / 32;
    __syncthreads();  // the scratch may still be read by the reduction before
    if (rank() % 32 == 0) partial[warp * kStride] = value;
    __syncthreads();
    T total = partial[0];
    for (int i = 1; i < warps; ++i) total = combine(total, partial[i * kStride]);
    return total;
  }

  // In halves: shared memory adds 32 bits at once, and 64 only in tries until nobody comes between.
  __device__ void add(uint64_t* target, uint64_t value) const {
    auto* const halves = reinterpret_cast<uint32_t*>(target);  // the low one first
    const auto low = static_cast<uint32_t>(value);
    const uint32_t before = atomicAdd(halves, low), carry = before > ~low ? 1 : 0;
    const uint32_t high = static_cast<uint32_t>(value >> 32) + carry;
    if (high != 0) atomicAdd(halves + 1, high);
  }
  __device__ int32_t take(int32_t* counter) const { return atomicAdd(counter, 1); }

 private:
  template <typename T, typename Combine>
  __device__ static T reduce_warp(T value, Combine combine) {
    static_assert(sizeof(T) % 4 == 0, "values reduced by a team are whole words");
    constexpr int kWords = sizeof(T) / 4;
    for (int distance = 16; distance > 0; distance /= 2) {
      union {
        T value;
        uint32_t words[kWords];
      } mine{value}, other;
      for (int i = 0; i < kWords; ++i) other.words[i] = __shfl_xor_sync(0xFFFFFFFFu, mine.words[i], distance);
      value = combine(value, other.value);
    }
    return value;
  }
};

}  // namespace qwen2vl::cuda
