#pragma once

#include <cstdint>
#include <vector>

#include "image/bicubic.h"
#include "image/frame.h"

namespace qwen2vl {

// Which pass comes first. The passes round to bytes in between, so the order shows in the result. Pillow
// always resized horizontally first; a release after 12.0 began to start vertically where the height shrinks
// by more than twice the pixels that the width does. Both rules are kept, so that a caller can match its
// Pillow.
enum class PassOrder { kHorizontalFirst, kVerticalFirstWhereShorter };

// The weights of both axes for one pair of sizes: made once, shared by the threads that resize.
struct ResizePlan {
  ResizePlan(ImageSize input, ImageSize output, PassOrder order)
      : vertical(input.height, output.height),
        horizontal(input.width, output.width),
        vertical_first(order == PassOrder::kVerticalFirstWhereShorter && input.height > output.height &&
                       input.height - output.height > (input.width - output.width) * 2) {}
  BicubicAxis vertical;
  BicubicAxis horizontal;
  bool vertical_first;
};

// Yields the rows of a resized frame from top to bottom, keeping only the few source rows (horizontally
// resized already, unless that pass comes second) that the vertical filter spans: memory is about (taps + 1)
// rows, whatever the picture's height.
class RowResizer {
 public:
  RowResizer(const FrameView& frame, const ResizePlan& plan);

  // Writes output row y, packed RGB: out has room for padded_row_bytes(output width) bytes. Rows that are
  // asked for in rising order cost least; any order gives the same bytes.
  void row(int64_t y, uint8_t* out);

 private:
  // Row y of `source`, resized in width.
  void horizontal(const FrameView& source, int64_t y, uint8_t* out);
  // Output row y of the vertical pass over the ring's rows.
  void vertical(int64_t y, uint8_t* out);

  const FrameView& frame_;
  const ResizePlan& plan_;
  int64_t ring_row_bytes_;
  std::vector<uint8_t> ring_;              // [taps, ring_row_bytes]: source row r lies in slot r % taps
  int64_t ring_begin_ = 0, ring_end_ = 0;  // source rows the ring holds
  std::vector<const uint8_t*> rows_;       // [taps], what the vertical filter spans now
  std::vector<uint8_t> combined_;          // vertical first: one row of the source's width
  std::vector<int32_t> wide_;              // scratch of the horizontal pass
  int32_t* wide_aligned_;                  // [source width * 4], on a 16-byte boundary inside wide_
};

}  // namespace qwen2vl
