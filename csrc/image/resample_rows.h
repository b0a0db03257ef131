#pragma once

#include <cstdint>

#include "image/bicubic.h"
#include "image/frame.h"

namespace qwen2vl {

// Row kernels of the bicubic resize. Rows written are packed RGB bytes; buffers have room for a multiple of
// kRowBlock bytes, because the vertical kernel works in whole blocks (what lies past the row is never used).
constexpr int64_t kRowBlock = 64;

inline int64_t padded_row_bytes(int64_t width) {
  return (width * kChannels + kRowBlock - 1) / kRowBlock * kRowBlock;
}

// Copies source row `y` of the frame to packed RGB, out [width * 3].
void copy_row(const FrameView& frame, int64_t y, uint8_t* out);

// Horizontal pass over source row `y`: out [axis.output * 3]. wide is scratch, int32 [axis.input * 4],
// 16-aligned.
void resample_row(const FrameView& frame, int64_t y, const BicubicAxis& axis, int32_t* wide, uint8_t* out);

// Vertical pass for one output row: out[x] = clip((2^21 + sum_i weights[i] * rows[i][x]) >> 22), x < bytes,
// bytes a multiple of kRowBlock.
void combine_rows(const uint8_t* const* rows, const int32_t* weights, int64_t count, int64_t bytes,
                  uint8_t* out);

}  // namespace qwen2vl
