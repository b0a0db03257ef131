#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "common/avx512.h"
#include "common/instruction_set.h"
#include "common/scratch.h"
#include "integer/linear.h"

// The products of integer/linear.h: sums of up to twelve tokens and 32 outputs in registers. Codes of weights
// are unsigned there and those of activations signed, as the instruction wants them; what a zero point adds
// to a sum is known from the sum of a token's codes, and each sum begins with it.
namespace qwen2vl {

#ifdef __x86_64__

bool IntegerLinear::supported() { return may_use_vnni(); }

namespace {

#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma")))
#define VNNI_INLINE VNNI __attribute__((always_inline)) inline

// One panel, as a kernel reads it.
struct Panel {
  const uint8_t* codes;
  int64_t code_stride;  // bytes from a block's codes to the next one's
  const uint8_t* scales;
  int64_t scale_stride;  // bytes from a block's scales to the next one's
  bool short_scales;     // kShortScale times as large, in float16
  int64_t scale_bytes;   // of a block; zero points after them
  bool zero_points;      // or all are `middle`
  int32_t middle;
  int64_t groups, blocks;  // groups of four inputs in a block, padded
};

// Where results go: columns of y [tokens, n].
struct Target {
  float* y;
  const float *bias, *added;  // at the same column as y, or null
  int64_t n;
  __mmask16 masks[2];
};

constexpr int64_t kCached = 400 << 10;  // bytes of panels that a thread goes on with
constexpr int64_t kAhead = 2048;        // bytes that are fetched ahead of what is multiplied

// Not _mm512_dpbusd_epi32: around it GCC 12 moves the sums from register to register, and to memory.
VNNI_INLINE void add_products(__m512i& sum, __m512i weights, __m512i inputs) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(inputs));
}

// Of 16 outputs, the first or the second of a panel.
VNNI_INLINE __m512 load_scales(const Panel& panel, const uint8_t* scales, int half) {
  if (!panel.short_scales) return _mm512_load_ps(scales + 64 * half);
  const __m256i codes = _mm256_load_si256(reinterpret_cast<const __m256i*>(scales + 32 * half));
  return _mm512_mul_ps(_mm512_cvtph_ps(codes), _mm512_set1_ps(1 / IntegerLinear::kShortScale));
}

// Adds the products of R tokens and a block of a panel.
template <int R, int Bits>
VNNI_INLINE void multiply(const int8_t* x, int64_t stride, const uint8_t* codes, int64_t groups,
                          __m512i (&sums)[R][2]) {
  constexpr int kChains = R == 1 ? 4 : R <= 3 ? 2 : 1;  // of sums that do not wait for one another
  const __m512i low_half = _mm512_set1_epi8(15);
  __m512i parts[kChains][R][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      parts[chain][r][0] = chain == 0 ? sums[r][0] : _mm512_setzero_si512();
      parts[chain][r][1] = chain == 0 ? sums[r][1] : _mm512_setzero_si512();
    }
  }
  for (int64_t group = 0; group < groups; group += kChains) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; ++chain) {
      const uint8_t* four = codes + (group + chain) * (16 * Bits);
      __m512i w0, w1;
      if constexpr (Bits == 4) {
        const __m512i both = _mm512_load_si512(four);
        w0 = _mm512_and_si512(both, low_half);
        w1 = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half);
      } else {
        w0 = _mm512_load_si512(four);
        w1 = _mm512_load_si512(four + 64);
        _mm_prefetch(four + kAhead + 64, _MM_HINT_T0);
      }
      _mm_prefetch(four + kAhead, _MM_HINT_T0);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        int32_t inputs;
        std::memcpy(&inputs, x + r * stride + (group + chain) * 4, sizeof(inputs));
        const __m512i many = _mm512_set1_epi32(inputs);
        add_products(parts[chain][r][0], w0, many);
        add_products(parts[chain][r][1], w1, many);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i sum = parts[0][r][half];
#pragma GCC unroll 4
      for (int chain = 1; chain < kChains; ++chain) sum = _mm512_add_epi32(sum, parts[chain][r][half]);
      sums[r][half] = sum;
    }
  }
}

// R tokens and one panel. Single: the panel is one block. The order of operations is the same whatever R is.
template <int R, int Bits, bool Single>
VNNI void tokens_by_panel(const TokenCodes& x, const Panel& panel, const Target& target) {
  const int64_t stride = panel.blocks * panel.groups * 4;
  // What the end reads and writes comes into the cache meanwhile.
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const int64_t at = r * target.n + 16 * half;
      __builtin_prefetch(target.y + at, 1);
      if (target.added != nullptr) __builtin_prefetch(target.added + at);
    }
  }
  __m512 totals[R][2];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) totals[r][0] = totals[r][1] = _mm512_setzero_ps();
  for (int64_t block = 0; block < (Single ? 1 : panel.blocks); ++block) {
    const uint8_t* scales = panel.scales + block * panel.scale_stride;
    __m512i sums[R][2];
    if (panel.zero_points) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const __m512i zero = _mm512_cvtepu8_epi32(
            _mm_load_si128(reinterpret_cast<const __m128i*>(scales + panel.scale_bytes + 16 * half)));
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r)
          sums[r][half] = _mm512_mullo_epi32(zero, _mm512_set1_epi32(-x.sums[r * panel.blocks + block]));
      }
    } else {
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r)
        sums[r][0] = sums[r][1] = _mm512_set1_epi32(-x.sums[r * panel.blocks + block] * panel.middle);
    }
    multiply<R, Bits>(x.codes + block * panel.groups * 4, stride, panel.codes + block * panel.code_stride,
                      panel.groups, sums);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const __m512 weight_scale = load_scales(panel, scales, half);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const __m512 token_scale = _mm512_set1_ps(x.scales[r * panel.blocks + block]);
        totals[r][half] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][half]),
                                          _mm512_mul_ps(weight_scale, token_scale), totals[r][half]);
      }
    }
  }
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __mmask16 mask = target.masks[half];
    const __m512 bias =
        target.bias == nullptr ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(mask, target.bias + 16 * half);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const int64_t at = r * target.n + 16 * half;
      __m512 y = _mm512_add_ps(totals[r][half], bias);
      if (target.added != nullptr) y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, target.added + at));
      _mm512_mask_storeu_ps(target.y + at, mask, y);
    }
  }
}

using Kernel = void (*)(const TokenCodes&, const Panel&, const Target&);

// One for each number of tokens that are computed together.
template <int Bits, bool Single, int... R>
constexpr std::array<Kernel, sizeof...(R)> kernels(std::integer_sequence<int, R...>) {
  return {tokens_by_panel<R + 1, Bits, Single>...};
}
constexpr auto kSingle = kernels<8, true>(std::make_integer_sequence<int, 12>());
constexpr auto kBlocks = kernels<8, false>(std::make_integer_sequence<int, 6>());
constexpr auto kHalves = kernels<4, false>(std::make_integer_sequence<int, 6>());

// From how many tokens on a panel of 4-bit codes is unpacked once for all of them.
constexpr int64_t kUnpack = 96;

// 4-bit codes of a panel as 8-bit ones.
VNNI void unpack(const uint8_t* records, int64_t record, int64_t blocks, int64_t groups, uint8_t* to) {
  const __m512i low_half = _mm512_set1_epi8(15);
  for (int64_t block = 0; block < blocks; ++block) {
    const uint8_t* codes = records + block * record;
    for (int64_t group = 0; group < groups; ++group, to += 128) {
      const __m512i both = _mm512_load_si512(codes + group * 64);
      _mm512_store_si512(to, _mm512_and_si512(both, low_half));
      _mm512_store_si512(to + 64, _mm512_and_si512(_mm512_srli_epi16(both, 4), low_half));
    }
  }
}

VNNI void add_up_codes(const int8_t* codes, int64_t count, int64_t block, int32_t* sums) {
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t i = 0; i < count; ++i, codes += block) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t j = 0; j < block; j += 64) {
      const int64_t left = block - j;
      const __mmask64 mask = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
      sum = _mm512_dpbusd_epi32(sum, ones, _mm512_maskz_loadu_epi8(mask, codes + j));
    }
    sums[i] = _mm512_reduce_add_epi32(sum);
  }
}

}  // namespace

void IntegerLinear::add_up(const int8_t* codes, int64_t tokens, int32_t* sums) const {
  add_up_codes(codes, tokens * blocks(), padded_block(), sums);
}

void IntegerLinear::run(const TokenCodes& x, int64_t tokens, const Addends& addends, int64_t begin,
                        int64_t end, float* y) const {
  const bool unpacked = bits_ == 4 && tokens >= kUnpack;
  const int64_t rows = blocks() == 1 && bits_ == 8 ? kSingle.size() : kBlocks.size();
  const Kernel* kernel = bits_ == 4 && !unpacked  ? kHalves.data()
                         : rows == kSingle.size() ? kSingle.data()
                                                  : kBlocks.data();
  // Few panels at a time, so that they stay in the second-level cache from one step of tokens to the next.
  const int64_t bytes = unpacked ? padded_inputs() * kPanel : panel_bytes();
  const int64_t together = std::clamp<int64_t>(kCached / bytes, 1, 8);
  auto* codes = unpacked ? static_cast<uint8_t*>(thread_scratch(together * bytes)) : nullptr;
  for (; begin < end; begin += together) {
    const int64_t count = std::min(together, end - begin);
    for (int64_t i = 0; unpacked && i < count; ++i) {
      unpack(packed() + (begin + i) * panel_bytes(), record_, blocks(), padded_block() / 4,
             codes + i * bytes);
    }
    for (int64_t token = 0; token < tokens; token += rows) {
      const int64_t part = token * blocks();
      const TokenCodes own{x.codes + token * padded_inputs(), x.scales + part, x.sums + part};
      for (int64_t i = 0; i < count; ++i) {
        const uint8_t* records = packed() + (begin + i) * panel_bytes();
        const Panel panel{unpacked ? codes + i * bytes : records,
                          unpacked ? padded_block() * kPanel : record_,
                          records + code_bytes(),
                          record_,
                          short_scales_,
                          scale_bytes(),
                          zero_points_,
                          1 << (bits_ - 1),
                          padded_block() / 4,
                          blocks()};
        const int64_t column = (begin + i) * kPanel, at = token * n_ + column;
        const Target target{y + at,
                            addends.bias == nullptr ? nullptr : addends.bias + column,
                            addends.added == nullptr ? nullptr : addends.added + at,
                            n_,
                            {first_lanes(n_ - column), first_lanes(n_ - column - 16)}};
        kernel[std::min(rows, tokens - token) - 1](own, panel, target);
      }
    }
  }
}

#else

bool IntegerLinear::supported() { return false; }
void IntegerLinear::add_up(const int8_t*, int64_t, int32_t*) const {}
void IntegerLinear::run(const TokenCodes&, int64_t, const Addends&, int64_t, int64_t, float*) const {}

#endif

}  // namespace qwen2vl
