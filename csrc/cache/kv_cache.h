#pragma once

#include <cstdint>

#include "cache/cache_kernels.h"
#include "cache/cache_rows.h"
#include "common/mapped_memory.h"

namespace qwen2vl {

// The decoder's keys and values on the CPU, float32, in place for the whole life of a session: `rows`
// sequences of at most `capacity` positions. Layer i has keys [rows, kv_heads, capacity, head_dim] and values
// of the same shape. A page of memory is committed when the engine first writes to it, so a large capacity
// costs nothing by itself.
class KVCache : public CacheRows {
 public:
  // Throws InputError for sizes below 1 or a total beyond the address space, Error when memory cannot be
  // reserved.
  KVCache(int64_t layers, int64_t rows, int64_t kv_heads, int64_t capacity, int64_t head_dim);

  // Address space of all keys and values; what is committed grows towards it as positions are written.
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }

  float* keys(int64_t layer) const;    // [rows, kv_heads, capacity, head_dim]
  float* values(int64_t layer) const;  // [rows, kv_heads, capacity, head_dim]

 private:
  void copy_positions(int64_t from, int64_t to, int64_t length) override;
  void zero_positions(int64_t row, int64_t length) override;
  void shift_positions(int64_t row, int64_t source, int64_t destination, int64_t count, const float* cos,
                       const float* sin) override;

  CacheLayout layout() const;

  MappedMemory memory_;  // [layers, 2, tensor_bytes]
};

}  // namespace qwen2vl
