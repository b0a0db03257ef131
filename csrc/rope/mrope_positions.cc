#include "rope/mrope_positions.h"

#include <algorithm>

namespace qwen2vl {

int64_t mrope_positions(const std::vector<VisualBlock>& blocks, int64_t tokens, int64_t* positions) {
  int64_t* temporal = positions;
  int64_t* height = positions + tokens;
  int64_t* width = positions + 2 * tokens;
  int64_t next = 0;  // the position that the next token or block starts at
  int64_t token = 0;
  const auto fill_text = [&](int64_t end) {
    for (; token < end; ++token, ++next) temporal[token] = height[token] = width[token] = next;
  };
  for (const VisualBlock& block : blocks) {
    fill_text(block.begin);
    for (int64_t t = 0; t < block.t; ++t) {
      for (int64_t h = 0; h < block.h; ++h) {
        for (int64_t w = 0; w < block.w; ++w, ++token) {
          temporal[token] = next + t;
          height[token] = next + h;
          width[token] = next + w;
        }
      }
    }
    next += std::max({block.t, block.h, block.w});
  }
  fill_text(tokens);
  return next - tokens;
}

}  // namespace qwen2vl
