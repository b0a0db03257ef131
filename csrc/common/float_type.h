#pragma once

#include <cstdint>
#include <cstring>

#include "common/half.h"
#include "common/host_device.h"

namespace qwen2vl {

// The number formats that an engine computes in. Kernels read and write them; what lies between is float32.
enum class FloatType : int32_t { kFloat32, kBFloat16, kFloat16 };

QWEN2VL_HOST_DEVICE int64_t float_size(FloatType type) { return type == FloatType::kFloat32 ? 4 : 2; }

QWEN2VL_HOST_DEVICE uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// To the nearest, ties to even; NaN stays NaN.
QWEN2VL_HOST_DEVICE uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// To the nearest, ties to even; beyond 65504 infinity; NaN stays NaN.
QWEN2VL_HOST_DEVICE uint16_t float_to_float16(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // rounds to 65536
  if (magnitude < 0x38800000u) {  // subnormal: adding 0.5 leaves the 2^-24 steps in the low mantissa bits
    const float shifted = float_from_bits(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of_float(shifted) - 0x3F000000u));
  }
  const uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

// A number's bits as they lie in memory, and the number.
QWEN2VL_HOST_DEVICE uint32_t load_bits(const void* data, FloatType type, int64_t index) {
  if (type == FloatType::kFloat32) return bits_of_float(static_cast<const float*>(data)[index]);
  return static_cast<const uint16_t*>(data)[index];
}
QWEN2VL_HOST_DEVICE float float_of_bits(uint32_t bits, FloatType type) {
  if (type == FloatType::kFloat32) return float_from_bits(bits);
  const auto half = static_cast<uint16_t>(bits);
  return type == FloatType::kBFloat16 ? bfloat16_to_float(half) : float16_to_float(half);
}
QWEN2VL_HOST_DEVICE float load_float(const void* data, FloatType type, int64_t index) {
  return float_of_bits(load_bits(data, type, index), type);
}

QWEN2VL_HOST_DEVICE void store_float(void* data, FloatType type, int64_t index, float value) {
  if (type == FloatType::kFloat32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] =
        type == FloatType::kBFloat16 ? float_to_bfloat16(value) : float_to_float16(value);
  }
}

}  // namespace qwen2vl
