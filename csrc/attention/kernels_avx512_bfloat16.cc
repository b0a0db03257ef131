#include <cstring>

#include "attention/kernels.h"
#include "common/avx512.h"

// x86-64 with AVX-512 and its bfloat16 products, of scores, too.
namespace qwen2vl {

#ifdef __x86_64__

namespace {

#include "attention/bfloat16_values.inl"

using Score = Vector;
using ScoreElement = uint16_t;
constexpr int64_t kScoreNumbers = 2, kKeyScaleBytes = 0;

TARGET inline Vector first_score(const PackedQuery&) { return Vector{}; }

TARGET inline Vector score_of(Vector sum, const char*, int64_t) { return sum; }

TARGET inline PackedQuery pack_query(const float* from, int64_t dim, uint16_t* to) {
  for (int64_t d = 0; d < dim; d += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + d), rounded(from + d, dim - d));
  }
  return {1, 0};
}

// A pair of a key's numbers is a 32-bit one: 16 keys and 16 pairs are transposed at a time.
TARGET inline void pack_key_vector(const float* rows, int64_t stride, int64_t count, int64_t dim,
                                   void* packed) {
  auto* to = static_cast<uint16_t*>(packed);
  for (int64_t d = 0; d < dim; d += 32) {
    __m512i pairs[16];
    for (int64_t i = 0; i < 16; ++i) {
      const float* row = rows + i * stride + d;
      pairs[i] = i < count ? _mm512_inserti64x4(_mm512_castsi256_si512(rounded(row, dim - d)),
                                                rounded(row + 16, dim - d - 16), 1)
                           : _mm512_setzero_si512();
    }
    transpose(pairs);
    for (int64_t i = 0; i < 16 && d + 2 * i < dim; ++i) _mm512_storeu_si512(to + (d + 2 * i) * 16, pairs[i]);
  }
}

#include "attention/kernels.inl"

}  // namespace

const AttentionKernels* avx512_bfloat16_attention_kernels() {
  static const AttentionKernels kernels = kernels_of("avx512-bfloat16", nullptr);
  return &kernels;
}

#else

const AttentionKernels* avx512_bfloat16_attention_kernels() { return nullptr; }

#endif

}  // namespace qwen2vl
