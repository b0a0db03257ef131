#pragma once

#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

namespace qwen2vl::ort {

// Rows of [.., K]: all dimensions but the last.
inline int64_t rows_of(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end() - 1, int64_t{1}, std::multiplies<>());
}

// Numbers that an element-wise pass takes in one task: some microseconds. Less is not worth waking a thread.
constexpr int64_t kNumbersATask = 32768;

}  // namespace qwen2vl::ort
