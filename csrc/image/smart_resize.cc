#include "image/smart_resize.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

#include "common/error.h"

namespace qwen2vl {

namespace {

constexpr double kMaxAspectRatio = 200.0;

std::string describe(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.10g", value);
  return text;
}

}  // namespace

ImageSize smart_resize(ImageSize size, int64_t factor, double min_pixels, double max_pixels) {
  const auto [height, width] = size;
  if (height < 1 || width < 1) throw InputError("a picture of " + describe(size) + " is empty");
  if (height > kLargestSide || width > kLargestSide) {
    throw InputError("a picture of " + describe(size) + " has a side over " + std::to_string(kLargestSide));
  }
  if (factor < 1 || factor > 65536)
    throw InputError("resize factor " + std::to_string(factor) + " is not in 1..65536");
  // The negated comparison also refuses NaN.
  if (!(min_pixels >= 1 && min_pixels <= max_pixels && max_pixels <= 1e15)) {
    throw InputError("min_pixels " + describe(min_pixels) + " and max_pixels " + describe(max_pixels) +
                     " must satisfy 1 <= min_pixels <= max_pixels");
  }
  const double ratio =
      static_cast<double>(std::max(height, width)) / static_cast<double>(std::min(height, width));
  if (ratio > kMaxAspectRatio) {
    throw InputError("a picture of " + describe(size) + " has an aspect ratio of " + describe(ratio) +
                     "; the model takes at most 200: crop it");
  }

  const double h = static_cast<double>(height), w = static_cast<double>(width),
               f = static_cast<double>(factor);
  // nearbyint rounds halves to even in the default rounding mode, as Python's round does.
  double resized_h = std::nearbyint(h / f) * f;
  double resized_w = std::nearbyint(w / f) * f;
  if (resized_h * resized_w > max_pixels) {
    const double beta = std::sqrt(h * w / max_pixels);
    resized_h = std::max(f, std::floor(h / beta / f) * f);
    resized_w = std::max(f, std::floor(w / beta / f) * f);
  } else if (resized_h * resized_w < min_pixels) {
    const double beta = std::sqrt(min_pixels / (h * w));
    resized_h = std::ceil(h * beta / f) * f;
    resized_w = std::ceil(w * beta / f) * f;
  }
  return {static_cast<int64_t>(resized_h), static_cast<int64_t>(resized_w)};
}

}  // namespace qwen2vl
