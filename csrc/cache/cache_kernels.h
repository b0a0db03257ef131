#pragma once

#include <cstdint>

#include "common/float_type.h"
#include "common/host_device.h"

struct CUstream_st;

namespace qwen2vl {

// Where a KV cache keeps its tensors: 2 * layers of them, keys and values by turns, each [rows, kv_heads,
// capacity, head_dim] of `type`, `tensor_bytes` apart. head_dim * size of `type` is a multiple of 16.
struct CacheLayout {
  char* base;
  int64_t tensor_bytes;
  int64_t layers, rows, kv_heads, capacity, head_dim;
  FloatType type;
};

// The head's positions [capacity, head_dim] in a row. Tensor 2 * layer are keys, the next one values.
QWEN2VL_HOST_DEVICE char* cache_head(const CacheLayout& cache, int64_t tensor, int64_t head, int64_t row) {
  return cache.base + tensor * cache.tensor_bytes +
         (row * cache.kv_heads + head) * cache.capacity * cache.head_dim * float_size(cache.type);
}

// The same for unit = tensor * kv_heads + head.
QWEN2VL_HOST_DEVICE char* cache_head(const CacheLayout& cache, int64_t unit, int64_t row) {
  return cache_head(cache, unit / cache.kv_heads, unit % cache.kv_heads, row);
}

// This step's new keys and values of one layer, [rows, kv_heads, tokens, head_dim] each, for the positions
// [past_length[b], past_length[b] + tokens) of cache rows first_row + b.
struct CacheAppend {
  CacheLayout cache;
  int64_t layer, first_row, rows, tokens;
  const int64_t* past_length;  // [rows]
  const void* keys;
  const void* values;
};

// Copies 16 bytes; index counts them over [2 (keys, values), rows, kv_heads, tokens, head_dim].
QWEN2VL_HOST_DEVICE void append_chunk(const CacheAppend& append, int64_t index) {
  struct alignas(16) Chunk {
    uint32_t words[4];
  };
  const CacheLayout& cache = append.cache;
  const int64_t per_head = cache.head_dim * float_size(cache.type) / 16;  // chunks of one position
  const int64_t chunk = index % per_head;
  int64_t rest = index / per_head;
  const int64_t token = rest % append.tokens;
  rest /= append.tokens;
  const int64_t head = rest % cache.kv_heads;
  rest /= cache.kv_heads;
  const int64_t row = rest % append.rows, part = rest / append.rows;
  const void* source = part == 0 ? append.keys : append.values;
  const int64_t from = ((row * cache.kv_heads + head) * append.tokens + token) * per_head + chunk;
  char* const target =
      cache_head(cache, (2 * append.layer + part) * cache.kv_heads + head, append.first_row + row);
  reinterpret_cast<Chunk*>(target)[(append.past_length[row] + token) * per_head + chunk] =
      static_cast<const Chunk*>(source)[from];
}

// Copies the first `length` positions of row `from` to row `to` (a fork, or a move that closes a gap).
struct CacheRowCopy {
  CacheLayout cache;
  int64_t from, to, length;
};

// Copies 16 bytes; index counts them over [2 * layers, kv_heads, length, head_dim].
QWEN2VL_HOST_DEVICE void copy_row_chunk(const CacheRowCopy& copy, int64_t index) {
  struct alignas(16) Chunk {
    uint32_t words[4];
  };
  const int64_t per_unit = copy.length * copy.cache.head_dim * float_size(copy.cache.type) / 16;
  const int64_t unit = index / per_unit, chunk = index % per_unit;
  reinterpret_cast<Chunk*>(cache_head(copy.cache, unit, copy.to))[chunk] =
      reinterpret_cast<const Chunk*>(cache_head(copy.cache, unit, copy.from))[chunk];
}

// Moves positions [source, source + count) of a row to [destination, ...), destination <= source, and turns
// the keys by a shift of their rotary positions: R(p + shift) k = R(shift) R(p) k. With it a rolling window
// drops its oldest frames without computing what stays again.
struct CacheShift {
  CacheLayout cache;
  int64_t row, source, destination, count;
  const float* cos;  // [head_dim / 2], of shift * frequency, the shift being that of the column's axis
  const float* sin;
};

// Moves and turns the pair of columns (column, column + head_dim / 2) of one position of one head.
// `read` and `write` are apart, so that a block of threads can put a barrier between them.
struct ShiftedPair {
  float left, right;
};
QWEN2VL_HOST_DEVICE ShiftedPair read_shifted(const CacheShift& shift, int64_t unit, int64_t position,
                                             int64_t column) {
  const CacheLayout& cache = shift.cache;
  const int64_t half = cache.head_dim / 2;
  const char* const head = cache_head(cache, unit, shift.row);
  const int64_t at = (shift.source + position) * cache.head_dim + column;
  const float left = load_float(head, cache.type, at), right = load_float(head, cache.type, at + half);
  const bool is_value = unit / cache.kv_heads % 2 == 1;
  if (is_value) return {left, right};
  const float cos = shift.cos[column], sin = shift.sin[column];
  return {left * cos - right * sin, right * cos + left * sin};
}
QWEN2VL_HOST_DEVICE void write_shifted(const CacheShift& shift, int64_t unit, int64_t position,
                                       int64_t column, ShiftedPair pair) {
  const CacheLayout& cache = shift.cache;
  char* const head = cache_head(cache, unit, shift.row);
  const int64_t at = (shift.destination + position) * cache.head_dim + column;
  store_float(head, cache.type, at, pair.left);
  store_float(head, cache.type, at + cache.head_dim / 2, pair.right);
}

namespace cpu {
void cache_append(const CacheAppend& append);
void cache_copy_row(const CacheRowCopy& copy);
void cache_shift(const CacheShift& shift);
}  // namespace cpu
namespace cuda {
void cache_append(const CacheAppend& append, CUstream_st* stream);
void cache_copy_row(const CacheRowCopy& copy, CUstream_st* stream);
void cache_shift(const CacheShift& shift, CUstream_st* stream);
}  // namespace cuda

}  // namespace qwen2vl
