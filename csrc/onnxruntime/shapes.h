#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <vector>

#include "common/ceil_divide.h"
#include "onnxruntime/kernel.h"

namespace qwen2vl::ort {

// Rows of [.., K]: all dimensions but the last.
inline int64_t rows_of(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end() - 1, int64_t{1}, std::multiplies<>());
}

// An element-wise pass: body(row) for each of `rows` rows of `width` numbers, on the call's threads.
template <typename Body>
void parallel_rows(const Call& call, int64_t rows, int64_t width, const Body& body) {
  constexpr int64_t kNumbersATask = 32768;  // some microseconds: less is not worth waking a thread
  const int64_t rows_a_task = std::max<int64_t>(1, kNumbersATask / width);
  call.parallel(ceil_divide(rows, rows_a_task), [&](size_t task) {
    const int64_t first = task * rows_a_task;
    for (int64_t row = first; row < std::min(first + rows_a_task, rows); ++row) body(row);
  });
}

}  // namespace qwen2vl::ort
