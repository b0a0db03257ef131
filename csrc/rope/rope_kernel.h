#pragma once

#include <math.h>

#include <cstdint>

#include "common/float_type.h"
#include "common/host_device.h"

struct CUstream_st;

namespace qwen2vl {

// cos/sin rows of the rotary embedding, from positions in memory: what RopeTable::fill computes, for twins on
// the CPU and on the GPU.
struct RopeRows {
  const float* inv_freq;     // [width]
  const uint8_t* axis;       // [width], which of the three positions turns this column
  int64_t width;             // head_dim / 2
  const int64_t* positions;  // axis a of token t at positions[a * stride + t]
  int64_t stride;            // 0: the same position on all axes (text), positions [tokens]
  int64_t tokens;
  FloatType type;
  void* cos;  // [tokens, width]
  void* sin;  // [tokens, width]
};

QWEN2VL_HOST_DEVICE void rope_element(const RopeRows& rope, int64_t index) {
  const int64_t token = index / rope.width, column = index % rope.width;
  const int64_t position = rope.positions[rope.axis[column] * rope.stride + token];
  // The angle is a float32 product, its cosine and sine are rounded once: see cos_sin.
  const double angle = static_cast<float>(position) * rope.inv_freq[column];
  store_float(rope.cos, rope.type, index, static_cast<float>(::cos(angle)));
  store_float(rope.sin, rope.type, index, static_cast<float>(::sin(angle)));
}

namespace cpu {
void rope_rows(const RopeRows& rope);
}
namespace cuda {
void rope_rows(const RopeRows& rope, CUstream_st* stream);
}

}  // namespace qwen2vl
