#include "cache/kv_cache.h"

#include <algorithm>
#include <cstring>

#include "common/parallel.h"

namespace qwen2vl {

KVCache::KVCache(int64_t layers, int64_t rows, int64_t kv_heads, int64_t capacity, int64_t head_dim)
    : CacheRows(layers, rows, kv_heads, capacity, head_dim, sizeof(float)),
      memory_(MappedMemory::anonymous(2 * layers * tensor_bytes())) {}

float* KVCache::keys(int64_t layer) const {
  check_layer(layer);
  return reinterpret_cast<float*>(memory_.data() + 2 * layer * tensor_bytes());
}

float* KVCache::values(int64_t layer) const {
  return reinterpret_cast<float*>(reinterpret_cast<std::byte*>(keys(layer)) + tensor_bytes());
}

CacheLayout KVCache::layout() const {
  return {reinterpret_cast<char*>(memory_.data()),
          tensor_bytes(),
          layers(),
          rows(),
          kv_heads(),
          capacity(),
          head_dim(),
          FloatType::kFloat32};
}

void KVCache::zero_positions(int64_t row, int64_t length) {
  for (int64_t layer = 0; layer < layers(); ++layer) {
    for (float* tensor : {keys(layer), values(layer)}) {
      for (int64_t head = 0; head < kv_heads(); ++head) {
        std::fill_n(tensor + (row * kv_heads() + head) * capacity() * head_dim(), length * head_dim(), 0.0f);
      }
    }
  }
}

void KVCache::copy_positions(int64_t from, int64_t to, int64_t length) {
  const CacheLayout cache = layout();
  const int64_t used = length * head_dim();  // the written positions of a head lie side by side
  // A slice worth a thread copies about a megabyte. One unit of work: one head of one tensor.
  const int64_t grain = std::max<int64_t>(1, (1 << 18) / used);
  parallel_for(2 * layers() * kv_heads(), grain, [&](size_t begin, size_t end) {
    for (auto unit = static_cast<int64_t>(begin); unit < static_cast<int64_t>(end); ++unit) {
      std::memcpy(cache_head(cache, unit, to), cache_head(cache, unit, from), used * sizeof(float));
    }
  });
}

void KVCache::shift_positions(int64_t row, int64_t source, int64_t destination, int64_t count,
                              const float* cos, const float* sin) {
  cpu::cache_shift({layout(), row, source, destination, count, cos, sin});
}

}  // namespace qwen2vl
