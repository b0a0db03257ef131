#include <cmath>
#include <cstring>
#include <limits>

#include "attention/kernels.h"
#include "common/avx512.h"

// x86-64 with AVX-512 and its integer and bfloat16 products: scores are products of 8-bit codes, -127 .. 127
// with a scale for each query and for each key, four in the place of one.
namespace qwen2vl {

#ifdef __x86_64__

namespace {

#include "attention/bfloat16_values.inl"

using Score = __m512i;
using ScoreElement = uint8_t;
constexpr int64_t kScoreNumbers = 4, kKeyScaleBytes = sizeof(float);

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
  const __m512 scales = _mm512_loadu_ps(keys + kLanes * padded_dim(dim));
  return reinterpret_cast<Vector>(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scales));
}

// What codes -127 .. 127 of [dim] numbers count in. NaN among them makes it NaN: codes alone would hide it.
TARGET inline float scale_of(const float* from, int64_t dim) {
  __m512 peak = _mm512_set1_ps(1e-20f);
  __mmask16 not_numbers = 0;
  for (int64_t d = 0; d < dim; d += 16) {
    const __m512 own = _mm512_maskz_loadu_ps(first_lanes(dim - d), from + d);
    not_numbers |= _mm512_cmp_ps_mask(own, own, _CMP_UNORD_Q);
    peak = _mm512_max_ps(peak, _mm512_abs_ps(own));
  }
  const float scale = _mm512_reduce_max_ps(peak) * (1.0f / 127);
  return not_numbers == 0 ? scale : std::numeric_limits<float>::quiet_NaN();
}

// 16 codes, in 32 bits each.
TARGET inline __m512i codes_of(const float* from, int64_t count, float inverse_scale) {
  return _mm512_cvtps_epi32(
      _mm512_mul_ps(_mm512_maskz_loadu_ps(first_lanes(count), from), _mm512_set1_ps(inverse_scale)));
}

TARGET inline PackedQuery pack_query(const float* from, int64_t dim, uint8_t* to) {
  const float scale = scale_of(from, dim);
  if (!std::isfinite(scale)) {  // nor is any score
    std::memset(to, 0, dim);
    return {scale, 0};
  }
  __m512i total = _mm512_setzero_si512();
  for (int64_t d = 0; d < dim; d += 16) {
    const __m512i codes = codes_of(from + d, dim - d, 1 / scale);
    total = _mm512_add_epi32(total, codes);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + d), _mm512_cvtepi32_epi8(codes));
  }
  return {scale, _mm512_reduce_add_epi32(total)};
}

// Four of a key's codes are a 32-bit number: 16 keys and 16 of these are transposed at a time.
TARGET inline void pack_key_vector(const float* rows, int64_t stride, int64_t count, int64_t dim,
                                   void* packed) {
  auto* to = static_cast<uint8_t*>(packed);
  float scales[16] = {};
  for (int64_t i = 0; i < count; ++i) scales[i] = scale_of(rows + i * stride, dim);
  for (int64_t d = 0; d < dim; d += 64) {
    __m512i keys[16];
    for (int64_t i = 0; i < 16; ++i) {
      alignas(64) uint8_t codes[64] = {};
      for (int64_t part = 0; i < count && part < 64 && d + part < dim; part += 16) {
        const __m512i own = codes_of(rows + i * stride + d + part, dim - d - part, 1 / scales[i]);
        _mm_store_si128(reinterpret_cast<__m128i*>(codes + part),
                        _mm512_cvtepi32_epi8(_mm512_add_epi32(own, _mm512_set1_epi32(kMiddle))));
      }
      keys[i] = _mm512_load_si512(codes);
    }
    transpose(keys);
    for (int64_t i = 0; i < 16 && d + 4 * i < dim; ++i) _mm512_storeu_si512(to + (d + 4 * i) * 16, keys[i]);
  }
  std::memcpy(to + kLanes * padded_dim(dim), scales, sizeof(scales));
}

#include "attention/kernels.inl"

}  // namespace

const AttentionKernels* avx512_codes_attention_kernels() {
  static const AttentionKernels kernels = [] {
    AttentionKernels found = kernels_of("avx512-codes", nullptr);
    found.finer = avx512_bfloat16_attention_kernels();
    return found;
  }();
  return &kernels;
}

#else

const AttentionKernels* avx512_codes_attention_kernels() { return nullptr; }

#endif

}  // namespace qwen2vl
