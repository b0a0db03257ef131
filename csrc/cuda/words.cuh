#pragma once

#include <cuda_runtime.h>

#include "common/float_type.h"

namespace qwen2vl::cuda {

// Number i of those that lie in 32-bit words, as they are loaded together.
template <FloatType type>
__device__ float number_of(const uint32_t* words, int i) {
  if (type == FloatType::kFloat32) return float_from_bits(words[i]);
  const uint32_t word = words[i / 2];
  if (type == FloatType::kBFloat16) return float_from_bits(i % 2 == 0 ? word << 16 : word & 0xFFFF0000u);
  return float16_to_float(static_cast<uint16_t>(i % 2 == 0 ? word : word >> 16));
}

// Two 16-bit numbers in a word, each rounded to the nearest, ties to even.
template <FloatType type>
__device__ uint32_t rounded_pair(float first, float second) {
  static_assert(type != FloatType::kFloat32, "a word holds one number of 32 bits");
#ifdef __CUDACC__
  uint32_t word;
  if constexpr (type == FloatType::kBFloat16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  }
  return word;
#else
  uint16_t halves[2];
  store_float(halves, type, 0, first);
  store_float(halves, type, 1, second);
  return uint32_t{halves[1]} << 16 | halves[0];
#endif
}

// The bits of a word that a mask has, and others: one instruction, which the compiler makes two of where both
// are constants.
__device__ inline uint32_t and_or(uint32_t word, uint32_t mask, uint32_t others) {
#ifdef __CUDACC__
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(result) : "r"(word), "r"(mask), "r"(others));
  return result;
#else
  return (word & mask) | others;
#endif
}

// A value of another thread of the warp.
__device__ inline float shuffled(float value, int distance) {
  return float_from_bits(__shfl_xor_sync(0xFFFFFFFFu, bits_of_float(value), distance));
}

// What lies there will be asked for soon.
__device__ inline void prefetch([[maybe_unused]] const void* address) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

}  // namespace qwen2vl::cuda
