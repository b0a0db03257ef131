#include "integer/block_linear.h"

#include <algorithm>
#include <cstring>

#include "common/instruction_set.h"

#ifdef __x86_64__
// GCC 12 warns of its own "undefined" vectors (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#endif

// A panel's block is a record of
//   codes        32 groups of four inputs, 64 bytes each: of 32 outputs the first 16 in the low halves of the
//   bytes,
//                the others in the high halves; the four inputs of an output side by side
//   scales       float32 [32]
//   zero points  uint8 [32], unless all are 8
// so that one token's product reads a panel's memory once, from its beginning to its end.
namespace qwen2vl {

namespace {

constexpr int64_t kBlock = BlockLinear::kBlock, kPanel = BlockLinear::kPanel;
constexpr int64_t kGroups = kBlock / 4;
constexpr int64_t kCodeBytes = kBlock * kPanel / 2, kScaleBytes = kPanel * sizeof(float);

// Four codes, two in a byte, as the low halves of four bytes.
uint32_t spread(const uint8_t* packed) {
  uint32_t word = packed[0] | packed[1] << 8;
  word = (word | word << 8) & 0x00FF00FF;
  return (word | word << 4) & 0x0F0F0F0F;
}

}  // namespace

BlockLinear::BlockLinear(const uint8_t* codes, const float* scales, const uint8_t* zero_points, int64_t k,
                         int64_t n)
    : k_(k),
      n_(n),
      zero_points_(zero_points != nullptr),
      record_(kCodeBytes + kScaleBytes + (zero_points == nullptr ? 0 : 64)),  // a whole line
      packed_(panels() * panel_bytes()) {
  const int64_t row = blocks() * (kBlock / 2), zero_row = (blocks() + 1) / 2;
  const std::vector<uint8_t> missing(kBlock / 2);
  for (int64_t panel = 0; panel < panels(); ++panel) {
    for (int64_t block = 0; block < blocks(); ++block) {
      uint8_t* record = packed_.data() + panel * panel_bytes() + block * record_;
      const auto source = [&](int64_t output) {
        return output < n ? codes + output * row + block * (kBlock / 2) : missing.data();
      };
      for (int64_t i = 0; i < 16; ++i) {
        const uint8_t *low = source(panel * kPanel + i), *high = source(panel * kPanel + 16 + i);
        for (int64_t group = 0; group < kGroups; ++group) {
          const uint32_t word = spread(low + 2 * group) | spread(high + 2 * group) << 4;
          std::memcpy(record + group * 64 + i * 4, &word, sizeof(word));
        }
      }
      for (int64_t i = 0; i < kPanel; ++i) {
        const int64_t output = panel * kPanel + i;
        const float scale = output < n ? scales[output * blocks() + block] : 0;
        std::memcpy(record + kCodeBytes + i * sizeof(float), &scale, sizeof(scale));
        if (zero_points_) {
          const uint8_t both = output < n ? zero_points[output * zero_row + block / 2] : 0;
          record[kCodeBytes + kScaleBytes + i] = both >> (block % 2 * 4) & 15;
        }
      }
    }
  }
}

#ifdef __x86_64__

bool BlockLinear::supported() { return may_use_vnni(); }

namespace {

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))

struct Panel {
  const uint8_t* records;
  int64_t record, blocks;
  bool zero_points;
};

// R tokens and one panel. A token's codes are blocks * kBlock apart, its steps and sums blocks apart.
template <int R>
VNNI void tokens_by_panel(const BlockCodes& x, const Panel& panel, const float* bias, __mmask16 mask0,
                          __mmask16 mask1, int64_t n, float* y) {
  constexpr int kChains = R == 1 ? 4 : R == 2 ? 2 : 1;  // of sums that do not wait for one another
  const __m512i low_half = _mm512_set1_epi8(15);
  __m512 totals[R][2];
  for (int r = 0; r < R; ++r) totals[r][0] = totals[r][1] = _mm512_setzero_ps();
  for (int64_t block = 0; block < panel.blocks; ++block) {
    const uint8_t* record = panel.records + block * panel.record;
    const int8_t* codes = x.codes + block * kBlock;
    __m512i sums[kChains][R][2];
    for (int chain = 0; chain < kChains; ++chain) {
      for (int r = 0; r < R; ++r) sums[chain][r][0] = sums[chain][r][1] = _mm512_setzero_si512();
    }
    for (int64_t group = 0; group < kGroups; group += kChains) {
#pragma GCC unroll 4
      for (int chain = 0; chain < kChains; ++chain) {
        const __m512i both = _mm512_load_si512(record + (group + chain) * 64);
        const __m512i low = _mm512_and_si512(both, low_half);
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          int32_t four;
          std::memcpy(&four, codes + r * panel.blocks * kBlock + (group + chain) * 4, sizeof(four));
          const __m512i inputs = _mm512_set1_epi32(four);
          sums[chain][r][0] = _mm512_dpbusd_epi32(sums[chain][r][0], low, inputs);
          sums[chain][r][1] = _mm512_dpbusd_epi32(sums[chain][r][1], high, inputs);
        }
      }
    }
    const auto* scales = reinterpret_cast<const float*>(record + kCodeBytes);
    const uint8_t* zero_points = record + kCodeBytes + kScaleBytes;
    for (int half = 0; half < 2; ++half) {
      const __m512 scale = _mm512_load_ps(scales + 16 * half);
      const __m512i zero = panel.zero_points ? _mm512_cvtepu8_epi32(_mm_load_si128(
                                                   reinterpret_cast<const __m128i*>(zero_points + 16 * half)))
                                             : _mm512_set1_epi32(8);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        __m512i sum = sums[0][r][half];
        for (int chain = 1; chain < kChains; ++chain) sum = _mm512_add_epi32(sum, sums[chain][r][half]);
        const int64_t index = r * panel.blocks + block;
        sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, _mm512_set1_epi32(x.sums[index])));
        totals[r][half] = _mm512_fmadd_ps(
            _mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, _mm512_set1_ps(x.steps[index])), totals[r][half]);
      }
    }
  }
  const __mmask16 masks[2] = {mask0, mask1};
  for (int half = 0; half < 2; ++half) {
    const __m512 shift =
        bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(masks[half], bias + 16 * half);
    for (int r = 0; r < R; ++r) {
      _mm512_mask_storeu_ps(y + r * n + 16 * half, masks[half], _mm512_add_ps(totals[r][half], shift));
    }
  }
}

constexpr int64_t kRows = 8;  // tokens that are computed together
using Kernel = void (*)(const BlockCodes&, const Panel&, const float*, __mmask16, __mmask16, int64_t, float*);
constexpr Kernel kKernels[kRows] = {tokens_by_panel<1>, tokens_by_panel<2>, tokens_by_panel<3>,
                                    tokens_by_panel<4>, tokens_by_panel<5>, tokens_by_panel<6>,
                                    tokens_by_panel<7>, tokens_by_panel<8>};

__mmask16 first(int64_t count) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, 16)) - 1);
}

}  // namespace

void BlockLinear::run(const BlockCodes& x, int64_t tokens, const float* bias, int64_t begin, int64_t end,
                      float* y) const {
  for (int64_t index = begin; index < end; ++index) {
    const Panel panel{packed_.data() + index * panel_bytes(), record_, blocks(), zero_points_};
    const int64_t column = index * kPanel;
    for (int64_t token = 0; token < tokens; token += kRows) {
      const int64_t rows = std::min(kRows, tokens - token), at = token * blocks();
      kKernels[rows - 1]({x.codes + at * kBlock, x.steps + at, x.sums + at}, panel,
                         bias == nullptr ? nullptr : bias + column, first(n_ - column),
                         first(n_ - column - 16), n_, y + token * n_ + column);
    }
  }
}

#else

bool BlockLinear::supported() { return false; }
void BlockLinear::run(const BlockCodes&, int64_t, const float*, int64_t, int64_t, float*) const {}

#endif

}  // namespace qwen2vl
