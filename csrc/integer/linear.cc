#include "integer/linear.h"

#include <algorithm>
#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "common/float_type.h"

// A panel's block is a record of
//   codes        groups of four inputs; an output's four side by side. 8 bits: 128 bytes a group, 32 outputs.
//                4 bits: 64 bytes, the first 16 outputs in the low halves of the bytes, the others in the
//                high ones
//   scales       [32]: float16 of kShortScale times the scale if that is exact for all of the layer, as it is
//                for the exporter's: of 4-bit blocks a token reads 3% less so; otherwise float32
//   zero points  uint8 [32], padded to a line, unless all are the middle of the codes' range
// so that one token's product reads a panel's memory once, from its beginning to its end.
namespace qwen2vl {

namespace {

constexpr int64_t kPanel = IntegerLinear::kPanel, kLine = 64;

uint16_t shortened(float scale) { return float_to_float16(scale * IntegerLinear::kShortScale); }

bool all_short(const float* scales, int64_t count) {
  return std::all_of(scales, scales + count, [](float scale) {
    return float16_to_float(shortened(scale)) / IntegerLinear::kShortScale == scale;
  });
}

// Four codes, two in a byte, as the low halves of four bytes.
uint32_t spread(const uint8_t* packed) {
  uint32_t word = packed[0] | packed[1] << 8;
  word = (word | word << 8) & 0x00FF00FF;
  return (word | word << 4) & 0x0F0F0F0F;
}

// Rows of four inputs, 16 outputs each, as 16 outputs of four inputs each, with 128 added.
void interleave(const int8_t* const (&rows)[4], uint8_t* to) {
#ifdef __SSE2__
  const auto row = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i])); };
  const auto store = [&](int i, __m128i value) {
    _mm_store_si128(reinterpret_cast<__m128i*>(to) + i, _mm_xor_si128(value, _mm_set1_epi8(-128)));
  };
  const __m128i low01 = _mm_unpacklo_epi8(row(0), row(1)), high01 = _mm_unpackhi_epi8(row(0), row(1));
  const __m128i low23 = _mm_unpacklo_epi8(row(2), row(3)), high23 = _mm_unpackhi_epi8(row(2), row(3));
  store(0, _mm_unpacklo_epi16(low01, low23));
  store(1, _mm_unpackhi_epi16(low01, low23));
  store(2, _mm_unpacklo_epi16(high01, high23));
  store(3, _mm_unpackhi_epi16(high01, high23));
#else
  for (int output = 0; output < 16; ++output) {
    for (int i = 0; i < 4; ++i) to[4 * output + i] = static_cast<uint8_t>(rows[i][output] ^ -128);
  }
#endif
}

}  // namespace

IntegerLinear::IntegerLinear(int bits, bool short_scales, bool zero_points, int64_t block, int64_t k,
                             int64_t n)
    : bits_(bits),
      short_scales_(short_scales),
      zero_points_(zero_points),
      block_(block),
      k_(k),
      n_(n),
      record_(code_bytes() + scale_bytes() + (zero_points ? kLine : 0)),
      packed_(MappedMemory::large_pages(panels() * panel_bytes())) {}

IntegerLinear IntegerLinear::of_blocks(int bits, const uint8_t* codes, const float* scales,
                                       const uint8_t* zero_points, int64_t k, int64_t n) {
  const int64_t blocks = (k + kScaleBlock - 1) / kScaleBlock;
  IntegerLinear linear(bits, all_short(scales, n * blocks), zero_points != nullptr, kScaleBlock, k, n);
  const int64_t bytes = kScaleBlock * bits / 8, row = blocks * bytes;
  const int64_t zero_row = (blocks * bits + 7) / 8;
  const uint8_t missing[kScaleBlock] = {};
  for (int64_t panel = 0; panel < linear.panels(); ++panel) {
    for (int64_t block = 0; block < blocks; ++block) {
      uint8_t* record = linear.record(panel, block);
      const auto source = [&](int64_t i) {
        const int64_t output = panel * kPanel + i;
        return output < n ? codes + output * row + block * bytes : missing;
      };
      for (int64_t i = 0; i < (bits == 4 ? 16 : 32); ++i) {
        const uint8_t *own = source(i), *high = bits == 4 ? source(16 + i) : nullptr;
        for (int64_t group = 0; group < kScaleBlock / 4; ++group) {
          if (bits == 4) {
            const uint32_t word = spread(own + 2 * group) | spread(high + 2 * group) << 4;
            std::memcpy(record + group * 64 + i * 4, &word, sizeof(word));
          } else {
            std::memcpy(record + group * 128 + i * 4, own + 4 * group, 4);
          }
        }
      }
      record += linear.code_bytes();
      for (int64_t i = 0; i < kPanel; ++i) {
        const int64_t output = panel * kPanel + i;
        const float scale = output < n ? scales[output * blocks + block] : 0;
        if (linear.short_scales_) {
          const uint16_t two_bytes = shortened(scale);
          std::memcpy(record + i * sizeof(two_bytes), &two_bytes, sizeof(two_bytes));
        } else {
          std::memcpy(record + i * sizeof(scale), &scale, sizeof(scale));
        }
        if (zero_points == nullptr) continue;
        const uint8_t* zeros = zero_points + output * zero_row;
        uint8_t zero = 0;
        if (output < n) zero = bits == 8 ? zeros[block] : zeros[block / 2] >> (block % 2 * 4) & 15;
        record[linear.scale_bytes() + i] = zero;
      }
    }
  }
  return linear;
}

IntegerLinear IntegerLinear::of_channels(const int8_t* codes, const float* scales, int64_t k, int64_t n) {
  IntegerLinear linear(8, false, false, k, k, n);
  constexpr int64_t kColumns = 256;  // read together: whole lines of memory
  const int8_t zeros[16] = {};
  for (int64_t first = 0; first < n; first += kColumns) {
    for (int64_t row = 0; row < linear.padded_block(); row += 4) {
      for (int64_t column = first; column < std::min(first + kColumns, linear.panels() * kPanel);
           column += 16) {
        int8_t part[4][16] = {};
        const int8_t* rows[4];
        for (int64_t i = 0; i < 4; ++i) {
          const bool there = row + i < k && column < n;
          const int8_t* from = codes + (row + i) * n + column;
          rows[i] = !there ? zeros : column + 16 <= n ? from : part[i];
          if (there && column + 16 > n) std::memcpy(part[i], from, n - column);
        }
        interleave(rows, linear.record(column / kPanel, 0) + row * kPanel + column % kPanel * 4);
      }
    }
  }
  for (int64_t panel = 0; panel < linear.panels(); ++panel) {
    float part[kPanel] = {};
    std::copy_n(scales + panel * kPanel, std::min(kPanel, n - panel * kPanel), part);
    std::memcpy(linear.record(panel, 0) + linear.code_bytes(), part, sizeof(part));
  }
  return linear;
}

}  // namespace qwen2vl
