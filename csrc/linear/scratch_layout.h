#pragma once

#include <algorithm>
#include <cstdint>

#include "linear/device_linear.h"

namespace qwen2vl {

// What a step keeps in scratch memory, as offsets in bytes; few rows mostly need none of it.
struct LinearScratch {
  int64_t normalized = 0, unpacked = 0, gate = 0, bytes = 0;

  explicit LinearScratch(const LinearStep& step) {
    const int64_t size = float_size(step.type);
    int64_t outputs = 0;
    for (int32_t m = 0; m < step.matrices; ++m) outputs = std::max(outputs, step.matrix[m].outputs);
    const bool blocks = step.form == MatrixForm::kBlocks4 || step.form == MatrixForm::kBlocks8;
    const bool many = step.rows > kFewLinearRows;
    normalized = take(step.norm != nullptr ? step.rows * step.inputs * size : 0);
    unpacked = take(many && blocks ? outputs * step.inputs * size : 0);
    gate = take(many && step.gated ? step.rows * outputs * float_size(step.result_type) : 0);
  }

 private:
  int64_t take(int64_t count) {
    const int64_t begin = bytes;
    bytes += (count + 255) / 256 * 256;
    return begin;
  }
};

}  // namespace qwen2vl
