#pragma once

#include <cstdint>

namespace qwen2vl {

// What becomes of a token's numbers, after a product or before they are rounded for one:
//   a = x * scale + bias;   y = (a or a * sigmoid(slope * a)) * other * other_scale + added
struct Activation {
  const float* x;
  float scale = 1;
  const float* bias = nullptr;   // [k] or null
  float slope = 0;               // 0: no sigmoid. silu: 1, quick gelu: 1.702
  const float* other = nullptr;  // [k] or null
  float other_scale = 1;
  const float* added = nullptr;  // [k] or null
};

// How a token's numbers are normalised before they are rounded:
//   y = (x - mean) / sqrt(mean of (x - mean)^2 + epsilon) * weight + bias, with a mean of 0 unless centered
struct Normalization {
  const float* weight;          // [k]
  const float* bias = nullptr;  // [k] or null
  float epsilon = 0;
  bool centered = false;
};

// Activations as 8-bit codes, on one instruction set.
struct QuantizeKernels {
  const char* name;
  // y [k].
  void (*activate)(const Activation& activation, int64_t k, float* y);
  // x [k] -> y [k].
  void (*normalize)(const float* x, const Normalization& normalization, int64_t k, float* y);
  // The codes [k] of each `block` numbers (the last block may have fewer): round(y / scale) + zero_point,
  // half to even, with a scale of 1/127 of the block's largest magnitude (at least 1e-10 / 127).
  void (*quantize)(const float* y, int64_t k, int64_t block, uint8_t zero_point, uint8_t* codes,
                   float* scales);
};

const QuantizeKernels* portable_quantize_kernels();
const QuantizeKernels* avx2_quantize_kernels();    // null where the compiler's target is another processor
const QuantizeKernels* avx512_quantize_kernels();  // the same

// The best of them that may be used (common/instruction_set.h).
const QuantizeKernels& quantize_kernels();

}  // namespace qwen2vl
