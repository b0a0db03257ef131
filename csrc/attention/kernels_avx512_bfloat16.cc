#include <cstring>

#include "attention/kernels.h"

#ifdef __x86_64__
// GCC 12 warns of its own "undefined" vectors (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

// x86-64 with AVX-512 and its products of rounded numbers, in the place of one float32 product each:
//   scores            four of 8-bit codes, -127 .. 127 with a step for each query and for each key
//   sums of values    two of bfloat16 numbers, added up in float32. Weights need its range: most of a sum may
//                     be weights that are far below the largest, which codes of 8 bits would drop
namespace qwen2vl {

#ifdef __x86_64__

namespace {

#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,fma")))
constexpr int kLanes = 16;
constexpr int kKeyVectors = 4;
constexpr int kDimVectors = 6;

#include "common/vectors.inl"

using Score = __m512i;
using ScoreElement = uint8_t;
using Element = uint16_t;
constexpr int64_t kScoreNumbers = 4, kPair = 2, kKeyStepBytes = sizeof(float);

TARGET inline Vector multiply_add(Vector sum, const uint16_t* one, const uint16_t* many) {
  int32_t two;
  std::memcpy(&two, one, sizeof(two));
  return reinterpret_cast<Vector>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum),
                                                   reinterpret_cast<__m512bh>(_mm512_set1_epi32(two)),
                                                   reinterpret_cast<__m512bh>(_mm512_loadu_si512(many))));
}

// Codes of keys are unsigned, and those of a query signed, as the instruction wants them. Not
// _mm512_dpbusd_epi32: around it GCC 12 moves the sums from register to register, and to memory.
TARGET inline __m512i multiply_add(__m512i sum, const uint8_t* one, const uint8_t* many) {
  int32_t four;
  std::memcpy(&four, one, sizeof(four));
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(_mm512_loadu_si512(many)), "v"(_mm512_set1_epi32(four)));
  return sum;
}

constexpr int kMiddle = 128;  // the code of a key's zero

TARGET inline __m512i first_score(const PackedQuery& query) {
  return _mm512_set1_epi32(-kMiddle * query.total);
}

TARGET inline Vector score_of(__m512i sum, const char* keys, int64_t dim) {
  const __m512 steps = _mm512_loadu_ps(keys + kLanes * padded_dim(dim));
  return reinterpret_cast<Vector>(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), steps));
}

TARGET inline __mmask16 first(int64_t count) {
  return count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

// 16 numbers, those that are missing zero, in bfloat16: to the nearest, ties to even.
TARGET inline __m256i rounded(const float* from, int64_t count) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(first(count), from)));
}

// What codes -127 .. 127 of [dim] numbers count in.
TARGET inline float step_of(const float* from, int64_t dim) {
  __m512 peak = _mm512_set1_ps(1e-20f);
  for (int64_t d = 0; d < dim; d += 16) {
    peak = _mm512_max_ps(peak, _mm512_abs_ps(_mm512_maskz_loadu_ps(first(dim - d), from + d)));
  }
  return _mm512_reduce_max_ps(peak) * (1.0f / 127);
}

// 16 codes, in 32 bits each.
TARGET inline __m512i codes_of(const float* from, int64_t count, float steps_a_number) {
  return _mm512_cvtps_epi32(
      _mm512_mul_ps(_mm512_maskz_loadu_ps(first(count), from), _mm512_set1_ps(steps_a_number)));
}

TARGET inline PackedQuery pack_query(const float* from, int64_t dim, uint8_t* to) {
  const float step = step_of(from, dim);
  __m512i total = _mm512_setzero_si512();
  for (int64_t d = 0; d < dim; d += 16) {
    const __m512i codes = codes_of(from + d, dim - d, 1 / step);
    total = _mm512_add_epi32(total, codes);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + d), _mm512_cvtepi32_epi8(codes));
  }
  return {step, _mm512_reduce_add_epi32(total)};
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

TARGET inline Vector weigh_scores(const float* scores, int64_t count, float step, float peak,
                                  uint16_t* weights) {
  const __m512 factor = _mm512_set1_ps(step), shift = _mm512_set1_ps(peak);
  __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t i = 0; i < count; i += 32) {
    const __m512 first = loose_exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + i), factor, shift));
    const __m512 second = loose_exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + i + 16), factor, shift));
    total[0] = _mm512_add_ps(total[0], first);
    total[1] = _mm512_add_ps(total[1], second);
    _mm512_storeu_si512(weights + i, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
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

// Four of a key's codes are a 32-bit number: 16 keys and 16 of these are transposed at a time.
TARGET inline void pack_key_vector(const float* rows, int64_t stride, int64_t count, int64_t dim,
                                   void* packed) {
  auto* to = static_cast<uint8_t*>(packed);
  float steps[16] = {};
  for (int64_t i = 0; i < count; ++i) steps[i] = step_of(rows + i * stride, dim);
  for (int64_t d = 0; d < dim; d += 64) {
    __m512i keys[16];
    for (int64_t i = 0; i < 16; ++i) {
      alignas(64) uint8_t codes[64] = {};
      for (int64_t part = 0; i < count && part < 64 && d + part < dim; part += 16) {
        const __m512i own = codes_of(rows + i * stride + d + part, dim - d - part, 1 / steps[i]);
        _mm_store_si128(reinterpret_cast<__m128i*>(codes + part),
                        _mm512_cvtepi32_epi8(_mm512_add_epi32(own, _mm512_set1_epi32(kMiddle))));
      }
      keys[i] = _mm512_load_si512(codes);
    }
    transpose(keys);
    for (int64_t i = 0; i < 16 && d + 4 * i < dim; ++i) _mm512_storeu_si512(to + (d + 4 * i) * 16, keys[i]);
  }
  std::memcpy(to + kLanes * padded_dim(dim), steps, sizeof(steps));
}

TARGET inline void pack_value_pair(const float* rows, int64_t stride, int64_t count, int64_t dim,
                                   uint16_t* to) {
  for (int64_t d = 0; d < dim; d += 16) {
    const __m512i first = _mm512_cvtepu16_epi32(rounded(rows + d, count > 0 ? dim - d : 0));
    const __m512i second = _mm512_cvtepu16_epi32(rounded(rows + stride + d, count > 1 ? dim - d : 0));
    _mm512_storeu_si512(to + 2 * d, _mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
  }
}

#include "attention/kernels.inl"

}  // namespace

const AttentionKernels* avx512_bfloat16_attention_kernels() {
  // A few queries are bound by the reading of the cache, which is float32.
  static const AttentionKernels kernels =
      kernels_of("avx512-bfloat16", avx512_attention_kernels()->attend_part);
  return &kernels;
}

#else

const AttentionKernels* avx512_bfloat16_attention_kernels() { return nullptr; }

#endif

}  // namespace qwen2vl
