#pragma once

#include <cstdint>

#include "common/mapped_memory.h"
#include "common/scale_block.h"

namespace qwen2vl {

// Tokens' activations as codes -127 .. 127 with a scale for each block of inputs.
struct TokenCodes {
  const int8_t* codes;  // [tokens, padded inputs]; what k lacks is zero
  const float* scales;  // [tokens, blocks]
  const int32_t* sums;  // [tokens, blocks]: of a block's codes
};

// What is added to a product.
struct Addends {
  const float* bias = nullptr;   // [n] or null
  const float* added = nullptr;  // [tokens, n] or null
};

// A layer with integer weights, y = x @ W^T (+ bias) (+ added), w = scale * (code - zero point). Products of
// integers, exact up to the scales, on x86-64 with AVX-512 VNNI. Keeps a copy of the weights in its own
// layout.
class IntegerLinear {
 public:
  static constexpr int64_t kPanel = 32;  // outputs that are computed together
  // Scales are kept in float16 as so many times their value: from 2^-29 to 2 they have all of its 11 bits.
  static constexpr float kShortScale = 0x1p15f;

  // Whether this CPU runs it, and may (common/instruction_set.h).
  static bool supported();

  // 4- or 8-bit codes with a scale and a zero point for each output's block of kScaleBlock inputs. codes [n,
  // blocks, kScaleBlock * bits / 8], of 4 bits two in a byte, the first in the low half; scales [n, blocks];
  // zero_points [n, blocks] packed like the codes, every row in whole bytes, or null where all are 2^(bits -
  // 1).
  static IntegerLinear of_blocks(int bits, const uint8_t* codes, const float* scales,
                                 const uint8_t* zero_points, int64_t k, int64_t n);
  // int8 codes [k, n] with a scale for each output: one block of k inputs.
  static IntegerLinear of_channels(const int8_t* codes, const float* scales, int64_t k, int64_t n);

  int64_t inputs() const { return k_; }
  int64_t outputs() const { return n_; }
  int64_t block() const { return block_; }
  int64_t blocks() const { return (k_ + block_ - 1) / block_; }
  int64_t padded_inputs() const { return blocks() * padded_block(); }
  int64_t panels() const { return (n_ + kPanel - 1) / kPanel; }
  int64_t panel_bytes() const { return blocks() * record_; }

  // The sums of tokens' codes [tokens, padded inputs], a block at a time: [tokens, blocks].
  void add_up(const int8_t* codes, int64_t tokens, int32_t* sums) const;

  // The outputs of panels [begin, end) for all tokens: y [tokens, n]. A token's do not depend on the others.
  void run(const TokenCodes& x, int64_t tokens, const Addends& addends, int64_t begin, int64_t end,
           float* y) const;

 private:
  IntegerLinear(int bits, bool short_scales, bool zero_points, int64_t block, int64_t k, int64_t n);

  // A block's inputs are whole steps of the kernels' loops; an input that is not there has zero codes.
  int64_t padded_block() const { return (block_ + 15) / 16 * 16; }
  int64_t code_bytes() const { return padded_block() * kPanel * bits_ / 8; }
  int64_t scale_bytes() const { return kPanel * (short_scales_ ? 2 : 4); }
  uint8_t* packed() const { return reinterpret_cast<uint8_t*>(packed_.data()); }
  uint8_t* record(int64_t panel, int64_t block) { return packed() + panel * panel_bytes() + block * record_; }

  int bits_;
  bool short_scales_;  // in two bytes, where that is exact
  bool zero_points_;
  int64_t block_, k_, n_;
  int64_t record_;  // bytes of a panel's block: codes, scales and zero points, in the order they are read
  MappedMemory packed_;
};

}  // namespace qwen2vl
