#pragma once

#include <cuda_runtime.h>

#include "common/float_type.h"

// What tensor cores do for a whole warp: products of matrices of 16-bit numbers, [16, 16] by [16, 8], as PTX
// describes them ("Matrix multiply-accumulate operation using mma instruction", m16n8k16, and ldmatrix). A
// word holds two neighbours of a row. Lane 4 g + t has words t and t + 4 of rows g and g + 8 of the first
// matrix, the same words of column g of the second, and columns 2 t and 2 t + 1 of rows g and g + 8 of the
// sums.
namespace qwen2vl::cuda {

// Four matrices of 8 rows of 16 bytes in shared memory: the lane brings the address of row lane % 8 of matrix
// lane / 8, and gets word t of row g of each.
__device__ inline void load_matrices(uint32_t (&words)[4], const void* row) {
#ifdef __CUDACC__
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(row)))
               : "memory");
#else
  emulated_cuda::load_matrices(words, row);
#endif
}

// sums += first second, in float32. first: words t of rows g and g + 8, then words t + 4 of these.
template <FloatType type>
__device__ void multiply_add(float (&sums)[4], const uint32_t (&first)[4], const uint32_t* second) {
  static_assert(type != FloatType::kFloat32, "tensor cores multiply 16-bit numbers");
#ifdef __CUDACC__
  if constexpr (type == FloatType::kBFloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(first[0]), "r"(first[1]), "r"(first[2]), "r"(first[3]), "r"(second[0]), "r"(second[1]));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(first[0]), "r"(first[1]), "r"(first[2]), "r"(first[3]), "r"(second[0]), "r"(second[1]));
  }
#else
  emulated_cuda::multiply_add(type == FloatType::kBFloat16, sums, first, second);
#endif
}

// The sums of two pairs of 16-bit numbers, each rounded.
template <FloatType type>
__device__ uint32_t add_pairs(uint32_t x, uint32_t y) {
#ifdef __CUDACC__
  uint32_t sums;
  if constexpr (type == FloatType::kBFloat16) {
    constexpr uint32_t kOnes = 0x3F803F80u;  // compute capability 8 has no addition, but this
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sums) : "r"(x), "r"(kOnes), "r"(y));
  } else {
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sums) : "r"(x), "r"(y));
  }
  return sums;
#else
  uint16_t sums[2];
  for (int i = 0; i < 2; ++i) store_float(sums, type, i, load_float(&x, type, i) + load_float(&y, type, i));
  return uint32_t{sums[1]} << 16 | sums[0];
#endif
}

}  // namespace qwen2vl::cuda
