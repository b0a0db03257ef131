#include <cstring>

#include "attention/kernels.h"

// x86-64 with AVX-512.
namespace qwen2vl {

#ifdef __x86_64__

namespace {

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
constexpr int kLanes = 16;
constexpr int kKeyVectors = 4;
constexpr int kDimVectors = 6;

#include "attention/float32_kernels.inl"

}  // namespace

const AttentionKernels* avx512_attention_kernels() {
  static const AttentionKernels kernels = kernels_of("avx512", attend_part);
  return &kernels;
}

#else

const AttentionKernels* avx512_attention_kernels() { return nullptr; }

#endif

}  // namespace qwen2vl
