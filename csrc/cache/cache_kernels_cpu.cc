#include <algorithm>

#include "cache/cache_kernels.h"
#include "common/parallel.h"

namespace qwen2vl::cpu {

namespace {

constexpr size_t kGrain = 1 << 16;  // chunks of 16 bytes worth a thread: a megabyte

}  // namespace

void cache_append(const CacheAppend& append) {
  const CacheLayout& cache = append.cache;
  const int64_t chunks =
      2 * append.rows * cache.kv_heads * append.tokens * cache.head_dim * float_size(cache.type) / 16;
  parallel_for(chunks, kGrain, [&](size_t begin, size_t end) {
    for (size_t index = begin; index < end; ++index) append_chunk(append, static_cast<int64_t>(index));
  });
}

void cache_copy_row(const CacheRowCopy& copy) {
  const CacheLayout& cache = copy.cache;
  const int64_t chunks =
      2 * cache.layers * cache.kv_heads * copy.length * cache.head_dim * float_size(cache.type) / 16;
  parallel_for(chunks, kGrain, [&](size_t begin, size_t end) {
    for (size_t index = begin; index < end; ++index) copy_row_chunk(copy, static_cast<int64_t>(index));
  });
}

void cache_shift(const CacheShift& shift) {
  const CacheLayout& cache = shift.cache;
  const int64_t half = cache.head_dim / 2;
  parallel_for(2 * cache.layers * cache.kv_heads, 1, [&](size_t begin, size_t end) {
    for (auto unit = static_cast<int64_t>(begin); unit < static_cast<int64_t>(end); ++unit) {
      for (int64_t position = 0; position < shift.count; ++position) {  // rising: the target lies below
        for (int64_t column = 0; column < half; ++column) {
          write_shifted(shift, unit, position, column, read_shifted(shift, unit, position, column));
        }
      }
    }
  });
}

}  // namespace qwen2vl::cpu
