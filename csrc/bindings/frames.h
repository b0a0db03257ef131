#pragma once

#include "bindings/arrays.h"
#include "image/frame.h"
#include "image/resize.h"

// What the preparation of frames takes from Python, on the CPU and on a device.
namespace qwen2vl {

// float32 [3, 256], what each byte of each channel becomes. Throws InputError.
inline FloatArray value_table(const pybind11::handle& object) {
  auto table = float_array(object, 2, "the value table");
  if (table.shape(0) != kChannels || table.shape(1) != 256) {
    throw InputError("the value table must be float32 [3, 256]");
  }
  return table;
}

// vertical_first: where Pillow starts with the vertical pass.
inline PassOrder pass_order(bool vertical_first) {
  return vertical_first ? PassOrder::kVerticalFirstWhereShorter : PassOrder::kHorizontalFirst;
}

}  // namespace qwen2vl
