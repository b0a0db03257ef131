#pragma once

#include <cstdint>
#include <string>

namespace qwen2vl {

// A picture's height and width, in pixels.
struct ImageSize {
  int64_t height;
  int64_t width;
};

// Of a picture's side: whatever is computed with two of them fits 64 bits.
constexpr int64_t kLargestSide = int64_t{1} << 24;

inline std::string describe(ImageSize size) {
  return std::to_string(size.width) + " x " + std::to_string(size.height) + " pixels (width x height)";
}

}  // namespace qwen2vl
