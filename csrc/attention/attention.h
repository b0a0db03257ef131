#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "attention/kernels.h"

namespace qwen2vl {

// parallel(count, body): body(i) for i in [0, count), in any order, on as many threads as there are.
using Parallel = std::function<void(size_t, const std::function<void(size_t)>&)>;

// The vision tower's attention: every patch of a picture with every other. Queries and keys are rotated here:
// number i of a head and number i + dim / 2 are a pair, turned by the angle i of their patch.
struct PictureAttention {
  const float* qkv;  // [pictures, patches, 3, heads, dim]
  const float* cos;  // [pictures, patches, dim / 2]
  const float* sin;
  float* output;  // [pictures, patches, heads, dim]
  int64_t pictures, patches, heads, dim;
};
void attend(const PictureAttention& call, const AttentionKernels& kernels, const Parallel& parallel);

// The decoder's attention: T new tokens a row, rotated as above and appended to the row's cache; each sees
// what the cache holds up to itself. `heads / kv_heads` heads share keys and values.
struct CachedAttention {
  const float* queries;  // [rows, tokens, heads, dim]
  const float* keys;     // [rows, tokens, kv_heads, dim]
  const float* values;   // [rows, tokens, kv_heads, dim]
  const float* cos;      // [rows, tokens, dim / 2]
  const float* sin;
  const int64_t* past;  // [rows]: how many tokens the cache holds already
  float* cached_keys;   // [rows, kv_heads, capacity, dim]
  float* cached_values;
  float* output;  // [rows, tokens, heads, dim]
  int64_t rows, tokens, heads, kv_heads, dim, capacity;
};
// So few tokens are bound by the reading of the cache, which packing would read once more. Kernels that round
// take no such way, so that a token's result is the same however many come with it.
constexpr int64_t kFewAttendingTokens = 4;

void attend(const CachedAttention& call, const AttentionKernels& kernels, const Parallel& parallel);

}  // namespace qwen2vl
