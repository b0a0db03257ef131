// Attention's inner loops in terms of one instruction set's vectors. A file of kernels defines, and includes
// this file inside an anonymous namespace:
//
//   TARGET             attribute of every function: the instruction set
//   what common/vectors.inl defines
//   Score              the sum that becomes a score
//   ScoreElement, kScoreNumbers   a number of a score's products, and how many one instruction adds up
//   kKeyScaleBytes     what a packed key has besides its numbers
//   Element, kPair     a number of a weighted sum of values, and how many of them one instruction adds up
//   kKeyVectors        vectors of keys whose scores with kScoreRows queries fit the registers
//   kDimVectors        vectors of a value whose sums for kValueRows queries fit the registers
//   kBlockKeys         keys whose scores are computed, weighed and used at a time: these keys, their values,
//                      the scores and weights of kQueryRows queries stay in the second-level cache
//   multiply_add(sum, one, many)   sum + broadcast(one[0 .. kPair)) * many[kLanes][kPair]; for Scores, too
//   larger(a, b)                   of each pair of numbers
//   pack_key_vector(rows, stride, count, dim, to)   `count` (0 .. kLanes) rows to [dim / kScoreNumbers]
//                                  [kLanes][kScoreNumbers], and then their scales
//   pack_query(from, dim, to)      [dim] numbers as ScoreElements; returns its PackedQuery
//   first_score(query)             a sum of no products yet
//   score_of(sum, keys, dim)       scores, but for the query's scale, of a packed vector of keys
//   weigh_scores(scores, count, scale, peak, weights)   weights 2^((score - peak) * scale) of `count` (a
//                                  multiple of 2 * kLanes) scores, as Elements; returns a vector whose
//                                  numbers add up to theirs
//   pack_value_pair(rows, stride, count, dim, to)   `count` (0 .. kPair) rows to [dim padded to 16][kPair]
//
// The loops over registers must be unrolled: hence the pragmas.

// A vector of packed keys.
TARGET inline size_t key_vector_bytes(int64_t dim) {
  return kLanes * packed_key_bytes(dim, sizeof(ScoreElement), kKeyScaleBytes);
}

constexpr int64_t kScoreRows = 6;
constexpr int64_t kValueRows = 4;
constexpr int64_t kQueryRows = AttentionKernels::kQueryRows;
constexpr int64_t kPartRows = AttentionKernels::kPartRows;
constexpr int64_t kPackRows = AttentionKernels::kPackRows;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kUnseen = -1e30f;  // a score whose weight is nothing

// Scores of R queries, but for their scales, and C vectors of packed keys; and each query's largest ones so
// far, tops [R, kLanes].
template <int R, int C>
TARGET inline void score_tile(const PackedQuery* queries, const ScoreElement* numbers, int64_t stride,
                              const char* keys, int64_t key_bytes, int64_t dim, float* scores, float* tops) {
  Score sums[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sums[r][c] = first_score(queries[r]);
  }
  for (int64_t d = 0; d < dim; d += kScoreNumbers) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        const auto* many = reinterpret_cast<const ScoreElement*>(keys + c * key_bytes) + d * kLanes;
        sums[r][c] = multiply_add(sums[r][c], numbers + r * stride + d, many);
      }
    }
  }
  Vector found[R][C];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      found[r][c] = score_of(sums[r][c], keys + c * key_bytes, dim);
      store(scores + r * kBlockKeys + c * kLanes, found[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    Vector top = load(tops + r * kLanes);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) top = larger(top, found[r][c]);
    store(tops + r * kLanes, top);
  }
}

// Adds the values of `count` keys, weighted, to R rows of sums, for C vectors of their numbers.
template <int R, int C>
TARGET inline void value_tile(const Element* weights, const Element* values, int64_t value_stride,
                              int64_t count, float* sums, int64_t sum_stride) {
  Vector total[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) total[r][c] = load(sums + r * sum_stride + c * kLanes);
  }
  for (int64_t key = 0; key < count; key += kPair, values += value_stride) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        total[r][c] = multiply_add(total[r][c], weights + r * kBlockKeys + key, values + c * kLanes * kPair);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) store(sums + r * sum_stride + c * kLanes, total[r][c]);
  }
}

// The same for all numbers of a value: `vectors` of them.
template <int R, int C = kDimVectors>
TARGET inline void add_values(const Element* weights, const Element* values, int64_t value_stride,
                              int64_t count, float* sums, int64_t sum_stride, int64_t vectors) {
  for (; vectors >= C; vectors -= C, values += C * kLanes * kPair, sums += C * kLanes) {
    value_tile<R, C>(weights, values, value_stride, count, sums, sum_stride);
  }
  if constexpr (C > 1) {
    if (vectors > 0) add_values<R, C - 1>(weights, values, value_stride, count, sums, sum_stride, vectors);
  }
}

// A row's largest score, by lanes, among the first `visible` of [padded]. The others become kUnseen.
TARGET inline Vector top_of(float* scores, int64_t visible, int64_t padded) {
  for (int64_t i = visible; i < padded; ++i) scores[i] = kUnseen;
  Vector top = load(scores);
  for (int64_t i = kLanes; i < padded; i += kLanes) top = larger(top, load(scores + i));
  return top;
}

// A row's scores [count], the largest of which is in `top`, become weights 2^((score - peak) * scale): the
// peak's own is 1 whatever the scores' size. Updates the row's peak, a score, and its sum of weights; returns
// the factor by which what was summed up before shrinks.
TARGET inline float weigh(const float* scores, int64_t count, Vector top, float scale, Element* weights,
                          float& peak, float& sum) {
  const float block_peak = largest_of(top);
  const float new_peak = block_peak > peak ? block_peak : peak;
  const Vector total = weigh_scores(scores, count, scale, new_peak, weights);
  const float shrink = exp2(Vector{} + (peak - new_peak) * scale)[0];
  sum = sum * shrink + sum_of(total);
  peak = new_peak;
  return shrink;
}

TARGET inline int64_t rounded_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Scores and weights of a block of keys; sums, packed queries and largest scores.
size_t scratch_bytes(int64_t dim) {
  return kQueryRows *
         (kBlockKeys * (sizeof(float) + sizeof(Element)) + (padded_dim(dim) * 2 + kLanes) * sizeof(float));
}

TARGET void attend(const AttentionBlock& block, void* scratch) {
  const int64_t dim = block.dim, width = padded_dim(dim), vectors = (dim + kLanes - 1) / kLanes;
  auto* scores = static_cast<float*>(scratch);                                 // [kQueryRows, kBlockKeys]
  float* sums = scores + kQueryRows * kBlockKeys;                              // [kQueryRows, width]
  auto* numbers = reinterpret_cast<ScoreElement*>(sums + kQueryRows * width);  // [kQueryRows, width]
  float* tops = sums + 2 * kQueryRows * width;                                 // [kQueryRows, kLanes]
  auto* weights = reinterpret_cast<Element*>(tops + kQueryRows * kLanes);      // [kQueryRows, kBlockKeys]
  PackedQuery queries[kQueryRows];
  float peaks[kQueryRows], totals[kQueryRows];
  const int64_t rows = rounded_up(block.rows, kScoreRows), value_rows = rounded_up(block.rows, kValueRows);
  int64_t keys = 0;
  for (int64_t r = 0; r < (rows > value_rows ? rows : value_rows); ++r) {
    alignas(64) float scaled[kMostAttentionDim] = {};
    const int64_t there = r < block.rows ? dim : 0;
    for (int64_t d = 0; d < there; ++d) scaled[d] = block.queries[r][d] * (block.scale * kLog2E);
    queries[r] = pack_query(scaled, width, numbers + r * width);
    for (int64_t d = 0; d < width; ++d) sums[r * width + d] = 0;
    peaks[r] = kUnseen;
    totals[r] = 0;
    if (r < block.rows && block.visible[r] > keys) keys = block.visible[r];
  }
  // Rows that only fill up a step of kValueRows: their weights are nothing.
  std::memset(weights + block.rows * kBlockKeys, 0, (value_rows - block.rows) * kBlockKeys * sizeof(Element));
  constexpr int64_t kTile = kKeyVectors * kLanes;
  const auto key_bytes = static_cast<int64_t>(key_vector_bytes(dim));
  for (int64_t first = 0; first < keys; first += kBlockKeys) {
    const int64_t count = keys - first < kBlockKeys ? keys - first : kBlockKeys;
    const int64_t padded = rounded_up(count, kTile);
    const char* block_keys = static_cast<const char*>(block.keys) + first / kLanes * key_bytes;
    for (int64_t r = 0; r < rows; ++r) store(tops + r * kLanes, Vector{} + kUnseen);
    for (int64_t key = 0; key < padded; key += kTile) {
      for (int64_t r = 0; r < rows; r += kScoreRows) {
        score_tile<kScoreRows, kKeyVectors>(queries + r, numbers + r * width, width,
                                            block_keys + key / kLanes * key_bytes, key_bytes, dim,
                                            scores + r * kBlockKeys + key, tops + r * kLanes);
      }
    }
    for (int64_t r = 0; r < block.rows; ++r) {
      int64_t visible = block.visible[r] - first;
      visible = visible < 0 ? 0 : visible > count ? count : visible;
      float* row = scores + r * kBlockKeys;
      const Vector top = visible < padded ? top_of(row, visible, padded) : load(tops + r * kLanes);
      const float shrink =
          weigh(row, padded, top, queries[r].scale, weights + r * kBlockKeys, peaks[r], totals[r]);
      if (shrink != 1) {
        for (int64_t v = 0; v < vectors; ++v) {
          float* sum = sums + r * width + v * kLanes;
          store(sum, load(sum) * shrink);
        }
      }
    }
    const auto* block_values = static_cast<const Element*>(block.values) + first * width;
    for (int64_t r = 0; r < value_rows; r += kValueRows) {
      add_values<kValueRows>(weights + r * kBlockKeys, block_values, width * kPair, padded, sums + r * width,
                             width, vectors);
    }
  }
  for (int64_t r = 0; r < block.rows; ++r) {
    const float norm = 1 / totals[r];
    for (int64_t d = 0; d < dim; ++d) block.outputs[r][d] = sums[r * width + d] * norm;
  }
}

// Numbers i and i + dim / 2 of a head, turned by the angle i.
TARGET void rotate(const float* __restrict from, const float* __restrict cos, const float* __restrict sin,
                   int64_t dim, float* __restrict to) {
  const int64_t half = dim / 2;
  // The last whole vector may begin before the one in front of it ends.
  for (int64_t next = 0; next < half && half >= kLanes; next += kLanes) {
    const int64_t i = next + kLanes <= half ? next : half - kLanes;
    const Vector a = load(from + i), b = load(from + i + half), c = load(cos + i), s = load(sin + i);
    store(to + i, a * c - b * s);
    store(to + i + half, b * c + a * s);
  }
  for (int64_t i = 0; i < half && half < kLanes; ++i) {
    const float a = from[i], b = from[i + half];
    to[i] = a * cos[i] - b * sin[i];
    to[i + half] = b * cos[i] + a * sin[i];
  }
}

TARGET void pack_keys(const float* rows, int64_t stride, int64_t count, int64_t dim, void* packed) {
  auto* to = static_cast<char*>(packed);
  for (int64_t i = 0; i < rounded_up(count, kPackRows); i += kLanes, to += key_vector_bytes(dim)) {
    const int64_t left = count - i;
    pack_key_vector(rows + i * stride, stride, left < 0 ? 0 : left < kLanes ? left : kLanes, dim, to);
  }
}

TARGET void pack_values(const float* rows, int64_t stride, int64_t count, int64_t dim, void* packed) {
  const int64_t width = padded_dim(dim);
  auto* to = static_cast<Element*>(packed);
  for (int64_t i = 0; i < rounded_up(count, kPackRows); i += kPair, to += kPair * width) {
    const int64_t left = count - i;
    pack_value_pair(rows + i * stride, stride, left < 0 ? 0 : left < kPair ? left : kPair, dim, to);
  }
}

AttentionKernels kernels_of(const char* name, decltype(AttentionKernels::attend_part) attend_part) {
  return {name,      sizeof(ScoreElement), kKeyScaleBytes, sizeof(Element), nullptr,    rotate,
          pack_keys, pack_values,          scratch_bytes,  attend,          attend_part};
}
