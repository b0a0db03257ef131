#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "attention/decode_attention.h"

namespace qwen2vl::cpu {

void decode_attention(const DecodeAttention& attention) {
  const CacheLayout& cache = attention.cache;
  const int64_t dim = cache.head_dim, group = attention.heads / cache.kv_heads;
  cache_append(
      {cache, attention.layer, 0, attention.rows, 1, attention.past_length, attention.k, attention.v});
  for (int64_t row = 0; row < attention.rows; ++row) {
    const int64_t length = attention.past_length[row] + 1;
    std::vector<double> scores(length);
    for (int64_t head = 0; head < attention.heads; ++head) {
      const int64_t unit = 2 * attention.layer * cache.kv_heads + head / group;
      const char* const keys = cache_head(cache, unit, row);
      const char* const values = cache_head(cache, unit + cache.kv_heads, row);
      const int64_t first = (row * attention.heads + head) * dim;
      double largest = -INFINITY, sum = 0;
      for (int64_t p = 0; p < length; ++p) {
        double score = 0;
        for (int64_t d = 0; d < dim; ++d) {
          score += static_cast<double>(load_float(attention.q, cache.type, first + d)) *
                   load_float(keys, cache.type, p * dim + d);
        }
        scores[p] = score / std::sqrt(static_cast<double>(dim));
        largest = std::max(largest, scores[p]);
      }
      for (double& score : scores) sum += score = std::exp(score - largest);
      for (int64_t d = 0; d < dim; ++d) {
        double value = 0;
        for (int64_t p = 0; p < length; ++p) value += scores[p] * load_float(values, cache.type, p * dim + d);
        store_float(attention.output, cache.type, first + d, static_cast<float>(value / sum));
      }
    }
  }
}

}  // namespace qwen2vl::cpu
