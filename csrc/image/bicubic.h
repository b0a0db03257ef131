#pragma once

#include <cstdint>
#include <vector>

#include "common/host_device.h"

namespace qwen2vl {

// One axis of Pillow's antialiased bicubic resize on 8-bit pixels, as fixed-point weights. Output position x
// is
//   clip8((2^21 + sum_{i < count[x]} weights[x * taps + i] * input[first[x] + i]) >> 22)
// The filter (a = -0.5, support 2), its widening when shrinking, the double-precision normalisation and the
// rounding to 22 fraction bits are Pillow's src/libImaging/Resample.c, so the result equals Pillow's bit for
// bit.
struct BicubicAxis {
  // input, output: lengths in pixels, both at least 1.
  BicubicAxis(int64_t input, int64_t output);

  int64_t input;
  int64_t output;
  // Equal lengths leave the axis alone.
  bool identity() const { return input == output; }

  int64_t taps;                  // weights stored for each output position; unused ones are zero
  std::vector<int32_t> first;    // [output]
  std::vector<int32_t> count;    // [output]
  std::vector<int32_t> weights;  // [output, taps]
};

constexpr int kBicubicFractionBits = 22;

QWEN2VL_HOST_DEVICE uint8_t bicubic_clip(int32_t sum) {
  const int32_t value = sum >> kBicubicFractionBits;
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

}  // namespace qwen2vl
