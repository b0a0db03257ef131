#include "linear/few_rows.cuh"

// [K, N]: a thread takes eight neighbouring outputs and every so many-th input.
namespace qwen2vl::cuda {

namespace {

constexpr int kThreads = 512;
constexpr int64_t kManyTiles = 96;  // fewer leave some of a large GPU's multiprocessors without work

// The first of the eight outputs that group g of a tile's `groups` takes. In a rotated matrix half of the
// groups take what the other half is mixed with.
template <int groups>
__device__ int64_t first_output(const LinearStep& step, int32_t m, int64_t tile, int g) {
  if (m >= step.rotated) return (tile * groups + g) * kWide;
  constexpr int kLeft = groups / 2;
  const int64_t half = step.head_dim / 2, left = tile * kLeft * kWide;  // counted over left halves
  return left / half * step.head_dim + left % half + g % kLeft * kWide + (g < kLeft ? 0 : half);
}

// Adds up eight sums over the slices of a warp, and stores them [groups * 8]. Each exchange halves what a
// lane still has to add: it gives its partner one half and takes the other.
template <int groups>
__device__ void store_slices(float* sums, int lane, float* target) {
  int width = kWide, first = 0;
#pragma unroll
  for (int distance = groups; distance < kWarp; distance *= 2) {
    if (width == 1) {
      sums[0] += shuffled(sums[0], distance);
      continue;
    }
    width /= 2;
    const bool upper = (lane & distance) != 0;
    first += upper ? width : 0;
#pragma unroll
    for (int i = 0; i < kWide / 2; ++i) {
      if (i >= width) break;
      const float given = upper ? sums[i] : sums[i + width];
      sums[i] = (upper ? sums[i + width] : sums[i]) + shuffled(given, distance);
    }
  }
  if (lane >= groups * kWide) return;                                         // these have the same as others
  constexpr int kKept = groups * kWide > kWarp ? groups * kWide / kWarp : 1;  // what `width` has come to
#pragma unroll
  for (int i = 0; i < kKept; ++i) target[lane % groups * kWide + first + i] = sums[i];
}

template <FloatType type, int groups, int rows, bool gated, bool normed>
__global__ void __launch_bounds__(kThreads, 1)
    columns_kernel(LinearStep step, int64_t first_row, Tiles tiles) {
  constexpr int kProducts = gated ? 2 : 1, kWidth = groups * kWide, kWarps = kThreads / kWarp;
  constexpr int kSlices = kThreads / groups, kAhead = kProducts * rows > 4 ? 2 : 4;
  __shared__ BlockTeam::Slot reduction[32];
  __shared__ Vector staged[normed ? kStagedBytes / sizeof(Vector) : 1];
  __shared__ float partial[kWarps][kWidth];
  __shared__ float sums[kProducts][kWidth];
  const BlockTeam team{reduction};
  if (normed) stage<type, rows>(team, step, first_row, reinterpret_cast<char*>(staged));
  const void* const input = normed ? static_cast<const void*>(staged) : step.x;

  int64_t tile = blockIdx.x;
  const int32_t m = gated ? 0 : matrix_of(tiles, &tile);
  const int thread = static_cast<int>(threadIdx.x), g = thread % groups, slice = thread / groups;
  const int64_t inputs = step.inputs, outputs = step.matrix[m].outputs;
  const int64_t output = first_output<groups>(step, m, tile, g);

  float sum[kProducts][rows][kWide] = {};
  for (int64_t begin = slice; begin < inputs && output < outputs; begin += kSlices * kAhead) {
    Eight<type> weights[kProducts][kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t k = begin + i * kSlices;
      if (k >= inputs) continue;
      for (int p = 0; p < kProducts; ++p) {
        weights[p][i] = Eight<type>::load(step.matrix[gated ? p : m].weights, k * outputs + output);
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t k = begin + i * kSlices;
      if (k >= inputs) continue;
#pragma unroll
      for (int b = 0; b < rows; ++b) {
        const float x = load_float(input, type, input_row<normed>(step, first_row, b) + k);
#pragma unroll
        for (int p = 0; p < kProducts; ++p) {
#pragma unroll
          for (int j = 0; j < kWide; ++j) sum[p][b][j] = fmaf(x, weights[p][i][j], sum[p][b][j]);
        }
      }
    }
  }

  const int lane = thread % kWarp, warp = thread / kWarp;
#pragma unroll
  for (int b = 0; b < rows; ++b) {
#pragma unroll
    for (int p = 0; p < kProducts; ++p) {
      store_slices<groups>(sum[p][b], lane, partial[warp]);
      __syncthreads();
      if (thread < kWidth) {
        float total = 0;
        for (int i = 0; i < kWarps; ++i) total += partial[i][thread];
        sums[p][thread] = total;
      }
      __syncthreads();
    }
    const int64_t row = first_row + b;
    // Units of the tile: single outputs of a gated step, else pairs.
    const int units = gated ? kWidth : kWidth / 2;
    if (thread < units && row < step.rows) {
      int group = thread / kWide, at = thread % kWide, other = group * kWide + at;
      if (!gated && m >= step.rotated) {
        group = thread / (kWide / 2);
        at = thread % (kWide / 2) * 2;
        other = group * kWide + at + 1;
      } else if (!gated) {
        other = (group + groups / 2) * kWide + at;
      }
      const int64_t first = first_output<groups>(step, m, tile, group) + at;
      const int64_t second = gated ? first : m >= step.rotated ? first + 1 : first + step.head_dim / 2;
      if (first < outputs) {
        finish_pair(step, m, row, {first, second}, sums[0][group * kWide + at],
                    gated ? sums[kProducts - 1][other] : sums[0][other]);
      }
    }
  }
}

template <int groups>
int64_t tiles_of(const LinearStep& step, int32_t m) {
  return (step.matrix[m].outputs + groups * kWide - 1) / (groups * kWide);
}

template <FloatType type, int groups, int rows, bool gated>
void launch_columns(const LinearStep& step, int64_t first_row, StreamHandle stream) {
  const Tiles tiles = count_through(step, &tiles_of<groups>);
  const auto blocks = static_cast<unsigned>(tiles.all);
  if (step.norm != nullptr) {
    launch(columns_kernel<type, groups, rows, gated, true>, blocks, kThreads, stream, "a layer", step,
           first_row, tiles);
  } else {
    launch(columns_kernel<type, groups, rows, gated, false>, blocks, kThreads, stream, "a layer", step,
           first_row, tiles);
  }
}

template <FloatType type, int rows>
void launch_columns(const LinearStep& step, int64_t first_row, StreamHandle stream) {
  constexpr int kNarrow = 2, kBroad = 8;
  const Tiles tiles = count_through(step, &tiles_of<kBroad>);
  // A rotated matrix' tile must not go over the end of half a head.
  const bool broad =
      tiles.all >= kManyTiles && (step.rotated == 0 || step.head_dim / 2 % (kBroad / 2 * kWide) == 0);
  if (step.gated) {
    broad ? launch_columns<type, kBroad, rows, true>(step, first_row, stream)
          : launch_columns<type, kNarrow, rows, true>(step, first_row, stream);
  } else {
    broad ? launch_columns<type, kBroad, rows, false>(step, first_row, stream)
          : launch_columns<type, kNarrow, rows, false>(step, first_row, stream);
  }
}

}  // namespace

bool few_rows_by_columns(const LinearStep& step, StreamHandle stream) {
  if (!stages(step) || (step.rotated > 0 && step.head_dim / 2 % kWide != 0)) return false;
  for (int32_t m = 0; m < step.matrices; ++m) {
    if (step.matrix[m].outputs % kWide != 0) return false;
  }
  for_type(step, [&](auto type) {
    for_rows<type()>(step,
                     [&](auto rows, int64_t row) { launch_columns<type(), rows()>(step, row, stream); });
  });
  return true;
}

}  // namespace qwen2vl::cuda
