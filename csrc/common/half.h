#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace qwen2vl {

// The 16-bit formats of checkpoints, widened to float32 (exactly: every value of both fits).

QWEN2VL_HOST_DEVICE float float_from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

QWEN2VL_HOST_DEVICE float bfloat16_to_float(uint16_t bits) {
  return float_from_bits(static_cast<uint32_t>(bits) << 16);
}

// Without branches, so that the compiler can vectorise a loop over it. Moves the exponent and mantissa into
// place and lets float arithmetic rebias them: a multiplication for normal numbers, infinities and NaN, a
// subtraction for subnormal ones.
QWEN2VL_HOST_DEVICE float float16_to_float(uint16_t bits) {
  const uint32_t shifted = static_cast<uint32_t>(bits) << 16;
  const uint32_t sign = shifted & 0x80000000u;
  const uint32_t magnitude = shifted + shifted;  // exponent and mantissa at the top, the sign gone
  const float normal = float_from_bits((magnitude >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  const float subnormal = float_from_bits((magnitude >> 17) | (126u << 23)) - 0.5f;
  const float value = magnitude < (1u << 27) ? subnormal : normal;
  uint32_t value_bits;
  std::memcpy(&value_bits, &value, sizeof(value));
  return float_from_bits(sign | value_bits);
}

}  // namespace qwen2vl
