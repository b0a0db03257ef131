#include <cstring>

#include "attention/kernels.h"

// Vectors of 16 bytes, which every 64-bit CPU of this project has: SSE2, NEON.
namespace qwen2vl {

namespace {

#define TARGET
constexpr int kLanes = 4;
#ifdef __aarch64__  // 32 registers
constexpr int kKeyVectors = 4;
constexpr int kDimVectors = 6;
#else  // 16
constexpr int kKeyVectors = 2;
constexpr int kDimVectors = 3;
#endif

#include "attention/float32_kernels.inl"

}  // namespace

const AttentionKernels* portable_attention_kernels() {
  static const AttentionKernels kernels = kernels_of("portable", attend_part);
  return &kernels;
}

}  // namespace qwen2vl
