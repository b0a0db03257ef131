#pragma once

#include <cstdint>

#include "common/float_type.h"
#include "common/host_device.h"
#include "rope/cos_sin.h"

struct CUstream_st;

namespace qwen2vl {

// cos/sin rows of the rotary embedding, from positions in memory.
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

QWEN2VL_HOST_DEVICE void rope_element(const RopeRows& rope, int64_t token, int64_t column) {
  const int64_t position = rope.positions[rope.axis[column] * rope.stride + token];
  float cos, sin;
  cos_sin(position, rope.inv_freq[column], &cos, &sin);
  const int64_t index = token * rope.width + column;
  store_float(rope.cos, rope.type, index, cos);
  store_float(rope.sin, rope.type, index, sin);
}

namespace cpu {
void rope_rows(const RopeRows& rope);
}
namespace cuda {
void rope_rows(const RopeRows& rope, CUstream_st* stream);
}

}  // namespace qwen2vl
