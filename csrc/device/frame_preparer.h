#pragma once

#include <map>
#include <memory>
#include <tuple>

#include "device/device.h"

namespace qwen2vl {

// Brings frames in a device's memory to the vision tower's input there: prepare_frame's result, bit for bit.
// Keeps the resize's weights for the sizes it has seen.
class FramePreparer {
 public:
  // table [3, 256], see prepare_frame.
  FramePreparer(std::shared_ptr<Device> device, const float* table, const PatchLayout& layout,
                PassOrder order);

  // Queues one frame. patches [grid_h * grid_w, patch_values] of `type`, one temporal patch, of which the
  // slots [slot_begin, slot_end) are written; digest is null, or [4] numbers that become the frame's hash.
  // Throws InputError on sizes that don't fit, and for frames that shrink by more than some hundred
  // times.
  void prepare(const FrameView& frame, ImageSize resized, int64_t slot_begin, int64_t slot_end,
               FloatType type, void* patches, uint64_t* digest);

 private:
  struct Weights {
    DeviceBlock memory;
    AxisView vertical, horizontal;
    bool vertical_first;
    int32_t tile_height;
  };
  const Weights& weights(ImageSize from, ImageSize to);

  std::shared_ptr<Device> device_;
  PatchLayout layout_;
  PassOrder order_;
  DeviceBlock table_;
  std::map<std::tuple<int64_t, int64_t, int64_t, int64_t>, Weights> weights_;
};

}  // namespace qwen2vl
