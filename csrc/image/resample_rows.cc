#include "image/resample_rows.h"

#include <cstring>

// The kernels are plain C++ that the compiler vectorises. The x86-64 baseline has no 32-bit vector multiply,
// so there each is compiled a second time for AVX2 and chosen at run time; integers give the same sums either
// way.
#if defined(__x86_64__) && defined(__GNUC__)
#define QWEN2VL_AVX2_TWIN 1
#endif

namespace qwen2vl {

namespace {

constexpr int32_t kHalf = 1 << (kBicubicFractionBits - 1);

// One pixel, widened: red, green, blue, unused.
typedef int32_t Pixel __attribute__((vector_size(16)));

inline __attribute__((always_inline)) void resample_body(const BicubicAxis& axis, const Pixel* row,
                                                         uint8_t* out) {
  for (int64_t x = 0; x < axis.output; ++x) {
    const int32_t* weights = &axis.weights[x * axis.taps];
    const Pixel* input = row + axis.first[x];
    Pixel sum = {kHalf, kHalf, kHalf, kHalf};
    for (int32_t i = 0; i < axis.count[x]; ++i) sum += input[i] * weights[i];
    for (int64_t c = 0; c < kChannels; ++c) out[x * kChannels + c] = bicubic_clip(sum[c]);
  }
}

inline __attribute__((always_inline)) void combine_body(const uint8_t* const* rows, const int32_t* weights,
                                                        int64_t count, int64_t bytes, uint8_t* out) {
  for (int64_t begin = 0; begin < bytes; begin += kRowBlock) {
    int32_t sum[kRowBlock];
    for (int64_t x = 0; x < kRowBlock; ++x) sum[x] = kHalf;
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* row = rows[i] + begin;
      const int32_t weight = weights[i];
      for (int64_t x = 0; x < kRowBlock; ++x) sum[x] += weight * row[x];
    }
    for (int64_t x = 0; x < kRowBlock; ++x) out[begin + x] = bicubic_clip(sum[x]);
  }
}

#ifdef QWEN2VL_AVX2_TWIN
__attribute__((target("avx2"))) void resample_avx2(const BicubicAxis& axis, const Pixel* row, uint8_t* out) {
  resample_body(axis, row, out);
}

__attribute__((target("avx2"))) void combine_avx2(const uint8_t* const* rows, const int32_t* weights,
                                                  int64_t count, int64_t bytes, uint8_t* out) {
  combine_body(rows, weights, count, bytes, out);
}

bool has_avx2() {
  static const bool value = __builtin_cpu_supports("avx2");
  return value;
}
#endif

}  // namespace

void copy_row(const FrameView& frame, int64_t y, uint8_t* out) {
  const uint8_t* pixel = frame.data + y * frame.row_stride;
  if (frame.pixel_stride == kChannels && frame.channel_stride == 1) {
    std::memcpy(out, pixel, frame.size.width * kChannels);
    return;
  }
  for (int64_t x = 0; x < frame.size.width; ++x, pixel += frame.pixel_stride) {
    for (int64_t c = 0; c < kChannels; ++c) out[x * kChannels + c] = pixel[c * frame.channel_stride];
  }
}

void resample_row(const FrameView& frame, int64_t y, const BicubicAxis& axis, int32_t* wide, uint8_t* out) {
  const uint8_t* pixel = frame.data + y * frame.row_stride;
  for (int64_t x = 0; x < frame.size.width; ++x, pixel += frame.pixel_stride) {
    for (int64_t c = 0; c < kChannels; ++c) wide[x * 4 + c] = pixel[c * frame.channel_stride];
  }
  const Pixel* row = reinterpret_cast<const Pixel*>(wide);
#ifdef QWEN2VL_AVX2_TWIN
  if (has_avx2()) return resample_avx2(axis, row, out);
#endif
  resample_body(axis, row, out);
}

void combine_rows(const uint8_t* const* rows, const int32_t* weights, int64_t count, int64_t bytes,
                  uint8_t* out) {
#ifdef QWEN2VL_AVX2_TWIN
  if (has_avx2()) return combine_avx2(rows, weights, count, bytes, out);
#endif
  combine_body(rows, weights, count, bytes, out);
}

}  // namespace qwen2vl
