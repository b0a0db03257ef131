#include <cmath>
#include <cstring>

#include "integer/quantize.h"

// x86-64 with AVX-512.
namespace qwen2vl {

#ifdef __x86_64__

namespace {

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma")))
constexpr int kLanes = 16;

#include "integer/quantize.inl"

}  // namespace

const QuantizeKernels* avx512_quantize_kernels() {
  static const QuantizeKernels kernels{"avx512", activate, normalize, quantize};
  return &kernels;
}

#else

const QuantizeKernels* avx512_quantize_kernels() { return nullptr; }

#endif

}  // namespace qwen2vl
