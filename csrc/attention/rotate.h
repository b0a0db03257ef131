#pragma once

#include <cstdint>

namespace qwen2vl {

// Numbers i and i + dim / 2 of a head, turned by the angle i.
inline void rotate(const float* from, const float* cos, const float* sin, int64_t dim, float* to) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = from[i], b = from[i + half];
    to[i] = a * cos[i] - b * sin[i];
    to[i + half] = b * cos[i] + a * sin[i];
  }
}

}  // namespace qwen2vl
