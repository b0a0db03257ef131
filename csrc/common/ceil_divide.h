#pragma once

#include <cstdint>

namespace qwen2vl {

// count / size rounded up: how many pieces of `size` hold `count`.
inline int64_t ceil_divide(int64_t count, int64_t size) { return (count + size - 1) / size; }

}  // namespace qwen2vl
