#pragma once

#include <algorithm>
#include <cstdint>

#include "common/float_type.h"
#include "common/host_device.h"
#include "image/bicubic.h"
#include "image/frame.h"
#include "image/prepare_frame.h"
#include "image/resize.h"

struct CUstream_st;

namespace qwen2vl {

// One axis of the bicubic resize, its weights in the memory of whoever computes: see BicubicAxis.
struct AxisView {
  const int32_t* first;    // [output]
  const int32_t* count;    // [output]
  const int32_t* weights;  // [output, taps]
  int32_t taps, input, output;
};

// One frame to patches in one pass, tile by tile: prepare_frame's arithmetic, with everything in the memory
// of whoever computes. A tile is kTileWidth output columns by tile_height rows; its scratch memory holds the
// pixels between the two passes of the resize.
struct FrameJob {
  FrameView frame;
  AxisView vertical, horizontal;
  bool vertical_first;
  PatchLayout layout;
  const float* table;  // [3, 256]
  int32_t slot_begin, slot_end;
  FloatType type;
  void* patches;     // [grid_h * grid_w, patch_values]
  uint64_t* digest;  // null, or [4]: the frame's hash is added to it
  int32_t tile_height;
};

constexpr int32_t kTileWidth = 32;
constexpr int32_t kFrameScratch = 48 * 1024 - 1024;  // bytes; what every GPU gives a block without asking

// Bytes of scratch memory that tiles of this height need.
inline int64_t frame_scratch_bytes(const ResizePlan& plan, int64_t tile_height) {
  // The largest span of input positions under `length` neighbouring output positions.
  const auto span = [](const BicubicAxis& axis, int64_t length) {
    int64_t largest = 0;
    for (int64_t begin = 0; begin < axis.output; begin += length) {
      const int64_t last = std::min(begin + length, axis.output) - 1;
      largest = std::max<int64_t>(largest, axis.first[last] + axis.count[last] - axis.first[begin]);
    }
    return largest;
  };
  return plan.vertical_first ? tile_height * span(plan.horizontal, kTileWidth) * kChannels
                             : span(plan.vertical, tile_height) * kTileWidth * kChannels;
}

// The largest tile height, at most 32 rows, whose scratch fits; 0 when the frame shrinks too much for any.
inline int32_t frame_tile_height(const ResizePlan& plan) {
  for (int32_t height = 32; height >= 1; height /= 2) {
    if (frame_scratch_bytes(plan, height) <= kFrameScratch) return height;
  }
  return 0;
}

// Where channel c of output pixel (y, x) goes in the patches, for the temporal slot 0.
QWEN2VL_HOST_DEVICE int64_t patch_value_index(const PatchLayout& layout, int32_t width, int32_t y, int32_t x,
                                              int32_t c) {
  const auto patch = static_cast<int32_t>(layout.patch_size), merge = static_cast<int32_t>(layout.merge_size);
  const int32_t factor = patch * merge, plane = patch * patch;
  const auto temporal = static_cast<int32_t>(layout.temporal_patch_size);
  const int64_t block = int64_t{y / factor} * (width / factor) + x / factor;
  const int64_t number = (block * merge + y % factor / patch) * merge + x % factor / patch;
  return number * (kChannels * temporal * plane) + c * temporal * plane + y % patch * patch + x % patch;
}

// A 64-bit hash of one pixel at its place, one of four; the sum over a frame identifies its content.
QWEN2VL_HOST_DEVICE uint64_t pixel_hash(uint64_t index, uint32_t rgb, int lane) {
  uint64_t value = (index << 24 | rgb) + 0x9E3779B97F4A7C15u * static_cast<uint64_t>(lane + 1);
  for (int round = 0; round < 2; ++round) {  // SplitMix64's finaliser, twice with other inputs
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    value ^= value >> 31;
    value += 0xD1B54A32D192ED03u * static_cast<uint64_t>(lane + 1);
  }
  return value;
}

struct Rgb {
  int32_t c[3];
};

// One output position of a pass: the weighted sum of pixel(i) for the positions i under the filter.
template <typename Pixel>
QWEN2VL_TEAM Rgb resample_pixel(const AxisView& axis, int32_t position, Pixel pixel) {
  constexpr int32_t kHalf = 1 << (kBicubicFractionBits - 1);
  Rgb sum{{kHalf, kHalf, kHalf}};
  const int32_t first = axis.first[position], count = axis.count[position];
  const int32_t* const weights = axis.weights + int64_t{position} * axis.taps;
  for (int32_t i = 0; i < count; ++i) {
    const Rgb value = pixel(first + i);
    for (int c = 0; c < 3; ++c) sum.c[c] += weights[i] * value.c[c];
  }
  for (int c = 0; c < 3; ++c) sum.c[c] = bicubic_clip(sum.c[c]);
  return sum;
}

// The output pixels of one tile, by a team; scratch [frame_scratch_bytes].
template <typename Team>
QWEN2VL_TEAM void prepare_tile(const Team& team, const FrameJob& job, int32_t tile_x, int32_t tile_y,
                               uint8_t* scratch) {
  const AxisView &vertical = job.vertical, &horizontal = job.horizontal;
  const int32_t x0 = tile_x * kTileWidth, y0 = tile_y * job.tile_height;
  const int32_t x1 = x0 + kTileWidth < horizontal.output ? x0 + kTileWidth : horizontal.output;
  const int32_t y1 = y0 + job.tile_height < vertical.output ? y0 + job.tile_height : vertical.output;
  const FrameView& frame = job.frame;
  const auto source = [&](int32_t y, int32_t x) {
    const uint8_t* const at = frame.data + y * frame.row_stride + x * frame.pixel_stride;
    return Rgb{{at[0], at[frame.channel_stride], at[2 * frame.channel_stride]}};
  };
  // The first pass fills the scratch memory [rows, columns, 3].
  const int32_t row0 = job.vertical_first ? y0 : vertical.first[y0];
  const int32_t row1 = job.vertical_first ? y1 : vertical.first[y1 - 1] + vertical.count[y1 - 1];
  const int32_t column0 = job.vertical_first ? horizontal.first[x0] : x0;
  const int32_t column1 = job.vertical_first ? horizontal.first[x1 - 1] + horizontal.count[x1 - 1] : x1;
  const int32_t columns = column1 - column0;
  for (int32_t i = team.rank(); i < (row1 - row0) * columns; i += team.size()) {
    const int32_t y = row0 + i / columns, x = column0 + i % columns;
    const Rgb value = job.vertical_first
                          ? resample_pixel(vertical, y, [&](int32_t at) { return source(at, x); })
                          : resample_pixel(horizontal, x, [&](int32_t at) { return source(y, at); });
    for (int c = 0; c < 3; ++c) scratch[3 * i + c] = static_cast<uint8_t>(value.c[c]);
  }
  team.sync();
  const auto between = [&](int32_t y, int32_t x) {
    const uint8_t* const at = scratch + 3 * ((y - row0) * columns + x - column0);
    return Rgb{{at[0], at[1], at[2]}};
  };
  uint64_t hash[4] = {};
  const int32_t plane = static_cast<int32_t>(job.layout.patch_size * job.layout.patch_size);
  for (int32_t i = team.rank(); i < (y1 - y0) * (x1 - x0); i += team.size()) {
    const int32_t y = y0 + i / (x1 - x0), x = x0 + i % (x1 - x0);
    const Rgb value = job.vertical_first
                          ? resample_pixel(horizontal, x, [&](int32_t at) { return between(y, at); })
                          : resample_pixel(vertical, y, [&](int32_t at) { return between(at, x); });
    for (int c = 0; c < 3; ++c) {
      const float normalised = job.table[c * 256 + value.c[c]];
      const int64_t at = patch_value_index(job.layout, horizontal.output, y, x, c);
      for (int32_t slot = job.slot_begin; slot < job.slot_end; ++slot) {
        store_float(job.patches, job.type, at + slot * plane, normalised);
      }
    }
    if (job.digest != nullptr) {
      const auto rgb = static_cast<uint32_t>(value.c[0] | value.c[1] << 8 | value.c[2] << 16);
      for (int lane = 0; lane < 4; ++lane) {
        hash[lane] += pixel_hash(static_cast<uint64_t>(y) * horizontal.output + x, rgb, lane);
      }
    }
  }
  if (job.digest != nullptr) {
    for (int lane = 0; lane < 4; ++lane) {
      const uint64_t sum = team.reduce(hash[lane], [](uint64_t a, uint64_t b) { return a + b; });
      if (team.rank() == 0) team.add(job.digest + lane, sum);
    }
  }
}

namespace cpu {
void prepare_frame_job(const FrameJob& job);
}
namespace cuda {
void prepare_frame_job(const FrameJob& job, CUstream_st* stream);
}

}  // namespace qwen2vl
