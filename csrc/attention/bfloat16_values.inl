// What the kernels with AVX-512's bfloat16 products share: weights and values are bfloat16 numbers, two of
// them multiplied in the place of one and added up in float32. Weights need the range of such numbers: most
// of a sum may be weights that are far below the largest, which codes of 8 bits would drop.

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,fma")))
constexpr int kLanes = 16;
constexpr int kKeyVectors = 4;
constexpr int kDimVectors = 6;
constexpr int64_t kBlockKeys = 1024;  // processors with such products have a second-level cache of 1 MB

#include "common/vectors.inl"

using Element = uint16_t;
constexpr int64_t kPair = 2;

TARGET inline Vector multiply_add(Vector sum, const uint16_t* one, const uint16_t* many) {
  int32_t two;
  std::memcpy(&two, one, sizeof(two));
  return reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                   reinterpret_cast<__m512bh>(_mm512_set1_epi32(two)),
                                                   reinterpret_cast<__m512bh>(_mm512_loadu_si512(many))));
}

// 16 numbers, those that are missing zero, in bfloat16: to the nearest, ties to even.
TARGET inline __m256i rounded(const float* from, int64_t count) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(first_lanes(count), from)));
}

TARGET inline Vector larger(Vector a, Vector b) {
  return reinterpret_cast<Vector>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
}

// 2^x, within 8e-5 of its size, which is well below what a bfloat16 number tells apart: x = floor(x) + f, and
// the polynomial of the third degree that is nearest to 2^f.
TARGET inline __m512 loose_exp2(__m512 x) {
  constexpr int kFloor = 1;
  const __m512 f = _mm512_reduce_ps(x, kFloor);
  __m512 p = _mm512_fmadd_ps(f, _mm512_set1_ps(0.078023858f), _mm512_set1_ps(0.226068102f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.695833216f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.999925234f));
  return _mm512_scalef_ps(p, x);
}

TARGET inline Vector weigh_scores(const float* scores, int64_t count, float scale, float peak,
                                  uint16_t* weights) {
  const __m512 factor = _mm512_set1_ps(scale), top = _mm512_set1_ps(peak);
  __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0; i < count; i += 32) {
    __m512 own[2];
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512 beneath = _mm512_sub_ps(_mm512_loadu_ps(scores + i + 16 * half), top);
      own[half] = loose_exp2(_mm512_mul_ps(beneath, factor));
      total[half] = _mm512_add_ps(total[half], own[half]);
    }
    _mm512_storeu_si512(weights + i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(own[1], own[0])));
  }
  return reinterpret_cast<Vector>(_mm512_add_ps(total[0], total[1]));
}

// In place: a[i] takes element i of every vector.
TARGET inline void transpose(__m512i (&a)[16]) {
  __m512i b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
    b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xDD);
    b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
    b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xDD);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
    a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xDD);
    a[i + 4] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xDD);
  }
}

TARGET inline void pack_value_pair(const float* rows, int64_t stride, int64_t count, int64_t dim,
                                   uint16_t* to) {
  for (int64_t d = 0; d < dim; d += 16) {
    const __m512i first = _mm512_cvtepu16_epi32(rounded(rows + d, count > 0 ? dim - d : 0));
    const __m512i second = _mm512_cvtepu16_epi32(rounded(rows + stride + d, count > 1 ? dim - d : 0));
    _mm512_storeu_si512(to + 2 * d, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
  }
}
