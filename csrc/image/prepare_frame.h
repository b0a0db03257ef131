#pragma once

#include <cstdint>

#include "image/frame.h"
#include "image/resize.h"

namespace qwen2vl {

// How the vision tower cuts a picture up.
struct PatchLayout {
  int64_t patch_size;           // side of a patch, pixels
  int64_t temporal_patch_size;  // frames in a patch
  int64_t merge_size;           // patches on a side of what becomes one visual token

  int64_t factor() const { return patch_size * merge_size; }
  int64_t patch_values() const { return kChannels * temporal_patch_size * patch_size * patch_size; }
};

// Throws InputError for a number outside 1..256.
void check_layout(const PatchLayout& layout);
// Throws InputError for sides outside 1..kLargestSide, resized ones that are no multiples of layout.factor(),
// and slots (see prepare_frame) that a patch does not have.
void check_frame(ImageSize frame, ImageSize resized, const PatchLayout& layout, int64_t slot_begin,
                 int64_t slot_end);

// Resizes one frame as Pillow's bicubic filter does and writes it into its place in the vision tower's input.
//
// resized: both sides multiples of layout.factor().
// table: float [3, 256], what each byte of each channel becomes (rescaled and normalised).
// patches: float [grid_h * grid_w, patch_values], one temporal patch. Patches come in merge order (row and
// column of
//   the merge block, then row and column inside it); a patch is [channel, frame, patch row, patch column].
// slot_begin, slot_end: the frames of the temporal patch to fill with this frame: one for a video's frame,
// all for
//   a picture or the frame that is repeated at an odd video's end. The other slots are left as they are.
// pixels: null, or uint8 [resized height, resized width, 3], which receives the resized frame.
//
// Runs on threads() threads; scratch memory is a few rows a thread. Throws InputError on sizes that don't
// fit.
void prepare_frame(const FrameView& frame, ImageSize resized, PassOrder order, const PatchLayout& layout,
                   const float* table, int64_t slot_begin, int64_t slot_end, float* patches, uint8_t* pixels);

// Pillow's `image.resize((width, height), BICUBIC)` of a frame: out uint8 [height, width, 3].
void resize_frame(const FrameView& frame, ImageSize resized, PassOrder order, uint8_t* out);

}  // namespace qwen2vl
