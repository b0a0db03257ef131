#include "rope/vision_rope_table.h"

#include <algorithm>
#include <string>
#include <vector>

#include "common/error.h"
#include "rope/cos_sin.h"
#include "rope/inverse_frequencies.h"

namespace qwen2vl {

void check_vision_grid(int64_t grid_h, int64_t grid_w, int64_t head_dim, int64_t merge_size) {
  if (head_dim < 4 || head_dim % 4 != 0 || head_dim > 65536) {
    throw InputError("the vision tower's head_dim must be a positive multiple of 4, got " +
                     std::to_string(head_dim));
  }
  // 2^20 patches on a side is far beyond any picture, and keeps the products below in range.
  const auto fits = [&](int64_t size) { return size >= 1 && size <= (1 << 20) && size % merge_size == 0; };
  if (merge_size < 1 || !fits(grid_h) || !fits(grid_w)) {
    throw InputError("a vision grid of " + std::to_string(grid_h) + " x " + std::to_string(grid_w) +
                     " patches does not merge by " + std::to_string(merge_size));
  }
}

void vision_rope_table(int64_t grid_h, int64_t grid_w, int64_t head_dim, int64_t merge_size, double theta,
                       float* cos, float* sin) {
  check_vision_grid(grid_h, grid_w, head_dim, merge_size);
  const int64_t quarter = head_dim / 4;  // frequencies an axis
  const int64_t positions = std::max(grid_h, grid_w);
  std::vector<float> inv_freq(quarter), axis_cos(positions * quarter), axis_sin(positions * quarter);
  inverse_frequencies(head_dim / 2, static_cast<float>(theta), inv_freq.data());
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t i = 0; i < quarter; ++i) {
      const int64_t at = position * quarter + i;
      cos_sin(position, inv_freq[i], &axis_cos[at], &axis_sin[at]);
    }
  }
  const auto copy_position = [&](int64_t position) {
    cos = std::copy_n(&axis_cos[position * quarter], quarter, cos);
    sin = std::copy_n(&axis_sin[position * quarter], quarter, sin);
  };
  for (int64_t block_row = 0; block_row < grid_h; block_row += merge_size) {
    for (int64_t block_column = 0; block_column < grid_w; block_column += merge_size) {
      for (int64_t row = block_row; row < block_row + merge_size; ++row) {
        for (int64_t column = block_column; column < block_column + merge_size; ++column) {
          copy_position(row);
          copy_position(column);
        }
      }
    }
  }
}

}  // namespace qwen2vl
