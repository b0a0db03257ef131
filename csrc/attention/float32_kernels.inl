// Attention's inner loops with float32 products, in the compiler's vectors of kLanes numbers. A file of
// kernels defines TARGET, kLanes, kKeyVectors and kDimVectors, and includes this file inside an anonymous
// namespace.

#include "common/vectors.inl"

using Score = Vector;
using ScoreElement = float;
using Element = float;
constexpr int64_t kBlockKeys = 256;
constexpr int64_t kScoreNumbers = 1, kPair = 1, kKeyScaleBytes = 0;

TARGET inline Vector multiply_add(Vector sum, const float* one, const float* many) {
  return sum + *reinterpret_cast<const Loose*>(many) * *one;
}

TARGET inline Vector larger(Vector a, Vector b) { return b > a ? b : a; }

TARGET inline PackedQuery pack_query(const float* from, int64_t dim, float* to) {
  std::memcpy(to, from, dim * sizeof(float));
  return {1, 0};
}

TARGET inline Vector first_score(const PackedQuery&) { return Vector{}; }

TARGET inline Vector score_of(Vector sum, const char*, int64_t) { return sum; }

TARGET inline Vector weigh_scores(const float* scores, int64_t count, float scale, float peak,
                                  float* weights) {
  Vector total = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Vector weight = exp2((load(scores + i) - peak) * scale);
    total += weight;
    store(weights + i, weight);
  }
  return total;
}

TARGET inline void pack_key_vector(const float* rows, int64_t stride, int64_t count, int64_t dim,
                                   void* packed) {
  auto* to = static_cast<float*>(packed);
  for (int64_t i = 0; i < kLanes; ++i) {
    for (int64_t d = 0; d < dim; ++d) to[d * kLanes + i] = i < count ? rows[i * stride + d] : 0;
  }
}

TARGET inline void pack_value_pair(const float* rows, int64_t, int64_t count, int64_t dim, float* to) {
  for (int64_t d = 0; d < padded_dim(dim); ++d) to[d] = count > 0 && d < dim ? rows[d] : 0;
}

#include "attention/kernels.inl"

// Scores of R queries and the keys [begin, end), one after the other.
template <int R>
TARGET inline void score_keys(const AttentionPart& part, const float* queries, int64_t begin, int64_t end,
                              float* scores) {
  for (int64_t key = begin; key < end; ++key) {
    const float* numbers = part.keys + key * part.dim;
    Vector sums[R] = {};
    for (int64_t d = 0; d < part.dim; d += kLanes) {
      const Vector k = load(numbers + d);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sums[r] += k * load(queries + r * part.dim + d);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) scores[r * kBlockKeys + key - begin] = sum_of(sums[r]);
  }
}

template <int R>
TARGET void attend_rows(const AttentionPart& part, float* scratch) {
  float* scores = scratch;                            // [kPartRows, kBlockKeys]
  float* queries = scratch + kPartRows * kBlockKeys;  // [kPartRows, dim]
  for (int64_t r = 0; r < R; ++r) {
    for (int64_t d = 0; d < part.dim; ++d) {
      queries[r * part.dim + d] = part.queries[r][d] * (part.scale * kLog2E);
      part.sums[r * part.dim + d] = 0;
    }
    part.peaks[r] = kUnseen;
    part.weights[r] = 0;
  }
  for (int64_t first = part.begin; first < part.end; first += kBlockKeys) {
    const int64_t count = part.end - first < kBlockKeys ? part.end - first : kBlockKeys;
    score_keys<R>(part, queries, first, first + count, scores);
    for (int64_t r = 0; r < R; ++r) {
      int64_t visible = part.visible[r] - first;
      visible = visible < 0 ? 0 : visible > count ? count : visible;
      float* row = scores + r * kBlockKeys;
      const int64_t padded = rounded_up(count, kLanes);
      const Vector top = top_of(row, visible, padded);
      const float shrink = weigh(row, padded, top, 1, row, part.peaks[r], part.weights[r]);
      for (int64_t d = 0; d < part.dim; ++d) part.sums[r * part.dim + d] *= shrink;
    }
    add_values<R, (kDimVectors == 6 ? 4 : 2)>(scores, part.values + first * part.dim, part.dim, count,
                                              part.sums, part.dim, part.dim / kLanes);
  }
}

TARGET void attend_part(const AttentionPart& part, void* scratch) {
  auto* numbers = static_cast<float*>(scratch);
  switch (part.rows) {
    case 1:
      return attend_rows<1>(part, numbers);
    case 2:
      return attend_rows<2>(part, numbers);
    case 3:
      return attend_rows<3>(part, numbers);
    case 4:
      return attend_rows<4>(part, numbers);
    case 5:
      return attend_rows<5>(part, numbers);
    case 6:
      return attend_rows<6>(part, numbers);
  }
}
