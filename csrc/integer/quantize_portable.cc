#include <cmath>
#include <cstring>

#include "integer/quantize.h"

// Vectors of 16 bytes: SSE2, NEON.
namespace qwen2vl {

namespace {

#define TARGET
constexpr int kLanes = 4;

#include "integer/quantize.inl"

}  // namespace

const QuantizeKernels* portable_quantize_kernels() {
  static const QuantizeKernels kernels{"portable", activate, normalize, quantize};
  return &kernels;
}

}  // namespace qwen2vl
