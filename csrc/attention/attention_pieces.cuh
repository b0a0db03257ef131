#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "attention/decode_attention.h"
#include "cuda/last_block.cuh"
#include "cuda/vector.cuh"
#include "cuda/words.cuh"

// What blocks over pieces of a row's positions leave for each other: softmax sums, put together by the last.
namespace qwen2vl::cuda {

// Below every score, and a number: what is weighted by exp(kLowest - another) counts nothing.
constexpr float kLowest = -1e30f;

// The positions [begin, end) of a piece. Its first cached_end ones lie in the cache; at most one does not,
// the new token's. In whole tiles, as far as there are some.
struct Piece {
  int64_t begin, cached_end, end;

  __device__ Piece(int64_t past, int64_t number, int64_t tile) {
    const int64_t tiles = (past + tile) / tile;  // of past + 1 positions
    const int64_t each = (tiles + kAttentionPieces - 1) / kAttentionPieces * tile;
    begin = number * each;
    cached_end = min(begin + each, past);
    end = min(begin + each, past + 1);
  }
};

// Softmax sums of some positions: the largest score, the weights' sum, and of the weighted values a lane's
// `per` neighbours, from lane * per on.
template <int per>
struct Sums {
  float largest, sum, values[per];

  __device__ void clear() {
    largest = kLowest;
    sum = 0;
    for (int i = 0; i < per; ++i) values[i] = 0;
  }
  // Takes in a position.
  __device__ void add(float score, const float (&value)[per]) {
    const float peak = fmaxf(largest, score);
    const float own = expf(largest - peak), weight = expf(score - peak);
    largest = peak;
    sum = fmaf(sum, own, weight);
    for (int i = 0; i < per; ++i) values[i] = fmaf(value[i], weight, values[i] * own);
  }
};

// The sums of `count` sums: peak_of(i) points to the largest score and the weights' sum of number i,
// values_of(i) to its values. All weights at once: one after the other, each would wait for the exponentials
// before it.
template <int per, int count, typename PeakOf, typename ValuesOf>
__device__ Sums<per> sum_of(PeakOf peak_of, ValuesOf values_of) {
  Sums<per> total;
  total.clear();
#pragma unroll
  for (int i = 0; i < count; ++i) total.largest = fmaxf(total.largest, peak_of(i)[0]);
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const float weight = expf(peak_of(i)[0] - total.largest);
    total.sum = fmaf(peak_of(i)[1], weight, total.sum);
    for (int n = 0; n < per; ++n) total.values[n] = fmaf(values_of(i)[n], weight, total.values[n]);
  }
  return total;
}

// A row's scratch memory.
struct PieceSums {
  int32_t* done;
  float *peaks, *values;

  __device__ PieceSums(const DecodeAttention& attention, int64_t row) {
    const auto layout = AttentionScratch::of(attention.heads, attention.cache.head_dim);
    auto* const memory = static_cast<float*>(attention.scratch) + row * layout.all;
    done = reinterpret_cast<int32_t*>(memory);
    peaks = memory + layout.peaks;
    values = memory + layout.values;
  }
};

// Several floats that other blocks wrote: not looked for in this multiprocessor's cache.
template <int per>
__device__ void load_written(const float* from, float (&to)[per]) {
  for (int i = 0; i < per; ++i) to[i] = __ldcg(from + i);
}
__device__ inline void load_written(const float* from, float (&to)[2]) {
  const float2 numbers = __ldcg(reinterpret_cast<const float2*>(from));
  to[0] = numbers.x, to[1] = numbers.y;
}
__device__ inline void load_written(const float* from, float (&to)[4]) {
  const float4 numbers = __ldcg(reinterpret_cast<const float4*>(from));
  to[0] = numbers.x, to[1] = numbers.y, to[2] = numbers.z, to[3] = numbers.w;
}

// Leaves a piece's sums, of `heads` heads from first_head on, a warp one head's; the last block of these
// heads puts all pieces together and writes the result. All threads of the block come here.
template <FloatType type, int per>
__device__ void join_pieces(const DecodeAttention& attention, int64_t row, int64_t piece, int64_t first_head,
                            int heads, const Sums<per>& sums) {
  constexpr int kDim = per * kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const PieceSums pieces(attention, row);
  const int64_t head = first_head + warp, first_slot = head * kAttentionPieces;
  if (warp < heads) {
    const int64_t slot = first_slot + piece;
    if (lane == 0) {
      pieces.peaks[2 * slot] = sums.largest;
      pieces.peaks[2 * slot + 1] = sums.sum;
    }
    for (int i = 0; i < per; ++i) pieces.values[slot * kDim + lane * per + i] = sums.values[i];
  }
  if (!is_last_block(pieces.done + first_head, kAttentionPieces) || warp >= heads) return;
  static_assert(kAttentionPieces == kWarp);  // a lane knows one piece's weight
  float peak[2];
  load_written(pieces.peaks + 2 * (first_slot + lane), peak);
  float largest = peak[0];
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    largest = fmaxf(largest, shuffled(largest, distance));
  const float weight = expf(peak[0] - largest);  // 0 of a piece without positions
  float sum = peak[1] * weight, total[per] = {};
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += shuffled(sum, distance);
#pragma unroll 16
  for (int other = 0; other < kWarp; ++other) {
    float values[per];
    load_written(pieces.values + (first_slot + other) * kDim + lane * per, values);
    const float share = __shfl_sync(0xFFFFFFFFu, weight, other);
    for (int i = 0; i < per; ++i) total[i] = fmaf(share, values[i], total[i]);
  }
  for (int i = 0; i < per; ++i) {
    store_float(attention.output, type, (row * attention.heads + head) * kDim + lane * per + i,
                total[i] / sum);
  }
}

}  // namespace qwen2vl::cuda
