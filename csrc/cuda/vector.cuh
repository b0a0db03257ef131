#pragma once

#include <cstdint>

namespace qwen2vl::cuda {

constexpr int kWarp = 32;

// What a thread loads at once, at most.
struct alignas(16) Vector {
  uint32_t words[4];
};
struct alignas(16) FourFloats {
  float numbers[4];
};

}  // namespace qwen2vl::cuda
