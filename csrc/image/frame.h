#pragma once

#include <cstddef>
#include <cstdint>

#include "image/image_size.h"

namespace qwen2vl {

// A uint8 picture that somebody else owns, read in place: any strides, in bytes, negative and zero ones
// included (a BGR camera frame is a negative channel stride, a grey one a channel stride of zero).
struct FrameView {
  const uint8_t* data;
  ImageSize size;
  ptrdiff_t row_stride;
  ptrdiff_t pixel_stride;
  ptrdiff_t channel_stride;
};

constexpr int64_t kChannels = 3;

}  // namespace qwen2vl
