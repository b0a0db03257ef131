#pragma once

#include <cstdint>

#include "common/host_device.h"

struct CUstream_st;

namespace qwen2vl {

// A matrix turned: to[c, r] = from[r, c].
struct Transpose {
  const void* from;  // [rows, columns]
  void* to;          // [columns, rows]
  int64_t rows, columns;
  int64_t item;  // bytes: 1, 2 or 4
};

template <typename Item>
QWEN2VL_HOST_DEVICE void transpose_item(const Transpose& turn, int64_t index) {
  const int64_t column = index / turn.rows, row = index % turn.rows;
  static_cast<Item*>(turn.to)[index] = static_cast<const Item*>(turn.from)[row * turn.columns + column];
}

namespace cpu {
void transpose(const Transpose& turn);
}
namespace cuda {
void transpose(const Transpose& turn, CUstream_st* stream);
}

}  // namespace qwen2vl
