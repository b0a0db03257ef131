#include "image/resize.h"

#include "image/resample_rows.h"

namespace qwen2vl {

RowResizer::RowResizer(const FrameView& frame, const ResizePlan& plan)
    : frame_(frame),
      plan_(plan),
      ring_row_bytes_(
          padded_row_bytes(plan.vertical_first ? plan.horizontal.input : plan.horizontal.output)) {
  if (!plan.vertical.identity()) {
    ring_.resize(plan.vertical.taps * ring_row_bytes_);
    rows_.resize(plan.vertical.taps);
  }
  if (plan.vertical_first) combined_.resize(ring_row_bytes_);
  if (!plan.horizontal.identity()) wide_.resize(plan.horizontal.input * 4 + 3);
  const auto address = reinterpret_cast<uintptr_t>(wide_.data());
  wide_aligned_ = wide_.data() + (16 - address % 16) % 16 / sizeof(int32_t);
}

void RowResizer::horizontal(const FrameView& source, int64_t y, uint8_t* out) {
  if (plan_.horizontal.identity()) {
    copy_row(source, y, out);
  } else {
    resample_row(source, y, plan_.horizontal, wide_aligned_, out);
  }
}

void RowResizer::vertical(int64_t y, uint8_t* out) {
  const BicubicAxis& axis = plan_.vertical;
  const int64_t begin = axis.first[y], end = begin + axis.count[y];
  // What the ring holds is reused where it joins on to the rows now needed.
  if (begin < ring_begin_ || begin > ring_end_) ring_end_ = begin;
  ring_begin_ = begin;
  const auto slot = [&](int64_t row) { return &ring_[row % axis.taps * ring_row_bytes_]; };
  for (; ring_end_ < end; ++ring_end_) {
    if (plan_.vertical_first) {
      copy_row(frame_, ring_end_, slot(ring_end_));
    } else {
      horizontal(frame_, ring_end_, slot(ring_end_));
    }
  }
  for (int64_t i = begin; i < end; ++i) rows_[i - begin] = slot(i);
  combine_rows(rows_.data(), &axis.weights[y * axis.taps], end - begin, ring_row_bytes_, out);
}

void RowResizer::row(int64_t y, uint8_t* out) {
  if (plan_.vertical.identity()) {
    horizontal(frame_, y, out);
  } else if (plan_.vertical_first) {
    vertical(y, combined_.data());
    horizontal({combined_.data(), {1, frame_.size.width}, 0, kChannels, 1}, 0, out);
  } else {
    vertical(y, out);
  }
}

}  // namespace qwen2vl
