#include <cstring>

#include "attention/kernels.h"

// x86-64 with AVX2 and FMA.
namespace qwen2vl {

#ifdef __x86_64__

namespace {

#define TARGET __attribute__((target("avx2,fma")))
constexpr int kLanes = 8;
constexpr int kKeyVectors = 2;
constexpr int kDimVectors = 3;

#include "attention/float32_kernels.inl"

}  // namespace

const AttentionKernels* avx2_attention_kernels() {
  static const AttentionKernels kernels = kernels_of("avx2", attend_part);
  return &kernels;
}

#else

const AttentionKernels* avx2_attention_kernels() { return nullptr; }

#endif

}  // namespace qwen2vl
