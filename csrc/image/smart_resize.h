#pragma once

#include <cstdint>

#include "image/image_size.h"

namespace qwen2vl {

// The size to which the model's processor brings a picture: both sides multiples of `factor` (patch size
// times merge size), height * width between min_pixels and max_pixels, the aspect ratio kept as nearly as
// that allows. The arithmetic is transformers' `smart_resize` for Qwen2-VL in double precision, Python's
// round-half-to-even included. A side is never less than `factor`, so a very thin picture may exceed
// max_pixels.
//
// Throws InputError: an empty picture, a side over kLargestSide, an aspect ratio over 200, limits that are
// not 1 <= min_pixels <= max_pixels.
ImageSize smart_resize(ImageSize size, int64_t factor, double min_pixels, double max_pixels);

}  // namespace qwen2vl
