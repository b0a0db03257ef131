#include "image/prepare_frame.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "common/error.h"
#include "common/parallel.h"
#include "image/resample_rows.h"

namespace qwen2vl {

namespace {

// One row of merge blocks: rows [factor, row_bytes] of packed RGB become the patches of that row,
// out [grid_w / merge * merge * merge, patch_values].
void patchify_band(const uint8_t* rows, int64_t row_bytes, int64_t width, const PatchLayout& layout,
                   const float* table, int64_t slot_begin, int64_t slot_end, float* out) {
  const int64_t patch = layout.patch_size, merge = layout.merge_size;
  const int64_t plane = patch * patch;
  for (int64_t block = 0; block < width / layout.factor(); ++block) {
    for (int64_t i = 0; i < merge; ++i) {
      for (int64_t j = 0; j < merge; ++j, out += layout.patch_values()) {
        const uint8_t* corner = rows + i * patch * row_bytes + (block * merge + j) * patch * kChannels;
        for (int64_t c = 0; c < kChannels; ++c) {
          float* channel = out + c * layout.temporal_patch_size * plane;
          float* filled = channel + slot_begin * plane;
          const float* values = table + c * 256;
          for (int64_t y = 0; y < patch; ++y) {
            const uint8_t* pixel = corner + y * row_bytes + c;
            for (int64_t x = 0; x < patch; ++x) filled[y * patch + x] = values[pixel[x * kChannels]];
          }
          for (int64_t slot = slot_begin + 1; slot < slot_end; ++slot) {
            std::memcpy(channel + slot * plane, filled, plane * sizeof(float));
          }
        }
      }
    }
  }
}

void check_sides(ImageSize frame, ImageSize resized) {
  const auto fits = [](int64_t side) { return side >= 1 && side <= kLargestSide; };
  if (!fits(frame.height) || !fits(frame.width)) {
    throw InputError("a frame of " + describe(frame) + " is empty or has a side over " +
                     std::to_string(kLargestSide));
  }
  if (!fits(resized.height) || !fits(resized.width)) {
    throw InputError("cannot resize a frame to " + describe(resized));
  }
}

}  // namespace

void check_layout(const PatchLayout& layout) {
  for (const int64_t value : {layout.patch_size, layout.temporal_patch_size, layout.merge_size}) {
    if (value < 1 || value > 256) throw InputError("patch and merge sizes must be in 1..256");
  }
}

void check_frame(ImageSize frame, ImageSize resized, const PatchLayout& layout, int64_t slot_begin,
                 int64_t slot_end) {
  check_sides(frame, resized);
  const int64_t factor = layout.factor();
  if (resized.height % factor != 0 || resized.width % factor != 0) {
    throw InputError("a frame resized to " + describe(resized) + " cannot be cut into blocks of " +
                     std::to_string(factor));
  }
  if (slot_begin < 0 || slot_end > layout.temporal_patch_size || slot_begin >= slot_end) {
    throw InputError("frame slots " + std::to_string(slot_begin) + ".." + std::to_string(slot_end) + " of " +
                     std::to_string(layout.temporal_patch_size));
  }
}

void prepare_frame(const FrameView& frame, ImageSize resized, PassOrder order, const PatchLayout& layout,
                   const float* table, int64_t slot_begin, int64_t slot_end, float* patches,
                   uint8_t* pixels) {
  check_frame(frame.size, resized, layout, slot_begin, slot_end);
  const int64_t factor = layout.factor();
  const ResizePlan plan(frame.size, resized, order);
  const int64_t row_bytes = padded_row_bytes(resized.width);
  const int64_t band_values =
      factor * resized.width / (layout.patch_size * layout.patch_size) * layout.patch_values();
  parallel_for(resized.height / factor, 1, [&](size_t begin, size_t end) {
    RowResizer resizer(frame, plan);
    std::vector<uint8_t> band(factor * row_bytes);
    for (size_t block_row = begin; block_row < end; ++block_row) {
      const int64_t top = block_row * factor;
      for (int64_t y = 0; y < factor; ++y) {
        resizer.row(top + y, &band[y * row_bytes]);
        if (pixels) {
          std::memcpy(pixels + (top + y) * resized.width * kChannels, &band[y * row_bytes],
                      resized.width * kChannels);
        }
      }
      patchify_band(band.data(), row_bytes, resized.width, layout, table, slot_begin, slot_end,
                    patches + block_row * band_values);
    }
  });
}

void resize_frame(const FrameView& frame, ImageSize resized, PassOrder order, uint8_t* out) {
  check_sides(frame.size, resized);
  const ResizePlan plan(frame.size, resized, order);
  parallel_for(resized.height, 32, [&](size_t begin, size_t end) {
    RowResizer resizer(frame, plan);
    std::vector<uint8_t> row(padded_row_bytes(resized.width));
    for (size_t y = begin; y < end; ++y) {
      resizer.row(y, row.data());
      std::memcpy(out + y * resized.width * kChannels, row.data(), resized.width * kChannels);
    }
  });
}

}  // namespace qwen2vl
