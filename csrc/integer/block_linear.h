#pragma once

#include <cstdint>
#include <vector>

#include "common/aligned_buffer.h"

namespace qwen2vl {

// Tokens' activations as codes -127 .. 127 with a step for each block of inputs.
struct BlockCodes {
  const int8_t* codes;  // [tokens, blocks, BlockLinear::kBlock]; what k lacks is zero
  const float* steps;   // [tokens, blocks]
  const int32_t* sums;  // [tokens, blocks]: of a block's codes
};

// A layer with 4-bit weights, y = x @ W^T (+ bias), w = scale * (code - zero point) with a scale and a zero
// point for each output's block of inputs. Products of integers, on x86-64 with AVX-512 VNNI.
class BlockLinear {
 public:
  static constexpr int64_t kBlock = 128;
  static constexpr int64_t kPanel = 32;  // outputs that are computed together

  // Whether this CPU runs it, and may (common/instruction_set.h).
  static bool supported();

  // codes [n, blocks, kBlock / 2], two in a byte, the first in the low half; scales [n, blocks]; zero_points
  // [n, (blocks + 1) / 2], two in a byte, or null where all are 8. Keeps a copy of its own layout of all
  // three.
  BlockLinear(const uint8_t* codes, const float* scales, const uint8_t* zero_points, int64_t k, int64_t n);

  int64_t inputs() const { return k_; }
  int64_t outputs() const { return n_; }
  int64_t blocks() const { return (k_ + kBlock - 1) / kBlock; }
  int64_t panels() const { return (n_ + kPanel - 1) / kPanel; }
  int64_t panel_bytes() const { return blocks() * record_; }

  // The outputs of panels [begin, end) for all tokens: y [tokens, n], bias [n] or null.
  void run(const BlockCodes& x, int64_t tokens, const float* bias, int64_t begin, int64_t end,
           float* y) const;

 private:
  int64_t k_, n_;
  bool zero_points_;
  int64_t record_;  // bytes of a panel's block: codes, scales and zero points, in the order they are read
  AlignedBuffer<uint8_t> packed_;
};

}  // namespace qwen2vl
