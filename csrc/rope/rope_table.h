#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace qwen2vl {

// cos/sin rows for the decoder's rotary embedding. The head_dim / 2 frequencies are split in three sections
// (mrope_section of the config); section j turns with axis j's position (temporal, height, width), so that
// attention itself stays generic. Equal to transformers' apply_multimodal_rotary_pos_emb, which splits the
// doubled table cat(freqs, freqs) by sections * 2: both halves then choose the same axes.
class RopeTable {
 public:
  // Throws InputError unless head_dim is even and the sections sum to head_dim / 2.
  RopeTable(int64_t head_dim, double theta, const std::array<int64_t, 3>& sections);

  const std::vector<float>& inv_freq() const { return inv_freq_; }          // [width]
  const std::vector<uint8_t>& axes() const { return axis_; }                // [width]
  int64_t width() const { return static_cast<int64_t>(inv_freq_.size()); }  // head_dim / 2

  // positions [3, stride], of which the columns [begin, begin + tokens) are used (stride 0: one position for
  // all axes); writes cos, sin [tokens, width].
  void fill(const int64_t* positions, int64_t stride, int64_t begin, int64_t tokens, float* cos,
            float* sin) const;
  // One row for a text token: the same position on all three axes. Writes cos, sin [width].
  void fill_text(int64_t position, float* cos, float* sin) const;

 private:
  std::vector<float> inv_freq_;  // [width]
  std::vector<uint8_t> axis_;    // [width], 0 to 2
};

}  // namespace qwen2vl
