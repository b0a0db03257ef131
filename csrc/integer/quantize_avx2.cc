#include <cmath>
#include <cstring>

#include "integer/quantize.h"

// x86-64 with AVX2 and FMA.
namespace qwen2vl {

#ifdef __x86_64__

namespace {

#define TARGET __attribute__((target("avx2,fma")))
constexpr int kLanes = 8;

#include "integer/quantize.inl"

}  // namespace

const QuantizeKernels* avx2_quantize_kernels() {
  static const QuantizeKernels kernels{"avx2", activate, normalize, quantize};
  return &kernels;
}

#else

const QuantizeKernels* avx2_quantize_kernels() { return nullptr; }

#endif

}  // namespace qwen2vl
