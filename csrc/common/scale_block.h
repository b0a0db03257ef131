#pragma once

#include <cstdint>

namespace qwen2vl {

// Neighbouring inputs of a matrix, or numbers of a token table's row, that share a scale in a quantized
// bundle: docs/bundle-format.md.
constexpr int64_t kScaleBlock = 128;

}  // namespace qwen2vl
