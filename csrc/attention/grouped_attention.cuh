#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "attention/attention_pieces.cuh"
#include "cuda/launch.cuh"
#include "cuda/tensor_core.cuh"
#include "cuda/vector.cuh"

// A decode step's attention on tensor cores: the query heads that share a key/value head share one reading of
// it.
namespace qwen2vl::cuda {

constexpr int kGroupedThreads = 256, kGroupedWarps = kGroupedThreads / kWarp;
constexpr int kGroupedHeads = 8;    // query heads that a block takes: half of a product's rows
constexpr int kTilePositions = 16;  // that a warp takes at once: a product's depth

// Blocks over one key/value head.
inline int64_t grouped_attention_parts(int64_t group) { return (group + kGroupedHeads - 1) / kGroupedHeads; }

// Keys and values of a tile as lane 4 g + t needs them for products: of keys the positions g and g + 8, of
// each 32 numbers eight from 8 t on; of values the positions 2 t, 2 t + 1, 2 t + 8 and 2 t + 9, of each 64
// numbers eight from 8 g on. Which number stands where in a product is the same for queries and keys, and so
// it doesn't matter.
template <int dim>
struct PositionTile {
  Vector keys[2][dim / 32], values[4][dim / 64];
};

// Where a head's positions lie: the past in the cache, the new token's key and value in the step's own
// results.
struct HeadPositions {
  const char *cached_keys, *cached_values, *new_key, *new_value;
  int64_t past, bytes;  // of a position

  // Positions first + .. below `end`; beyond it the last, whose weight is 0.
  template <int dim>
  __device__ void load_keys(int64_t first, int64_t end, int lane, PositionTile<dim>* tile) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t position = min(first + lane / 4 + 8 * i, end - 1);
      const char* const key = position == past ? new_key : cached_keys + position * bytes;
#pragma unroll
      for (int j = 0; j < dim / 32; ++j) {
        tile->keys[i][j] = reinterpret_cast<const Vector*>(key)[4 * j + lane % 4];
      }
    }
  }
  template <int dim>
  __device__ void load_values(int64_t first, int64_t end, int lane, PositionTile<dim>* tile) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t position = min(first + lane % 4 * 2 + i % 2 + i / 2 * 8, end - 1);
      const char* const value = position == past ? new_value : cached_values + position * bytes;
#pragma unroll
      for (int j = 0; j < dim / 64; ++j) {
        tile->values[i][j] = reinterpret_cast<const Vector*>(value)[8 * j + lane / 4];
      }
    }
  }
};

// Where four of head g's numbers lie, in shared memory: eight lanes' that are written at once, and eight that
// are read, in eight different places of 128 bytes.
__device__ inline int four_place(int four, int g) { return four ^ (four / 8 % 2 + g % 2 * 2); }

// A warp's softmax sums of its tiles' positions, for head g in lane 4 g + t: the largest score and the lane's
// part of the weights' sum, and of the weighted values those of product j, e with 8 (2 t), 8 (2 t + 1)
// numbers before.
template <FloatType type, int dim>
struct TileSums {
  float largest = kLowest, sum = 0;
  float values[dim / 64][8][4] = {};  // the last two: what the weights lost when rounded

  // Scores of positions 2 t, 2 t + 1, 2 t + 8 and 2 t + 9, -INFINITY where there is none.
  __device__ void add(const float (&scores)[4], const PositionTile<dim>& tile) {
    float peak = fmaxf(fmaxf(scores[0], scores[1]), fmaxf(scores[2], scores[3]));
    for (int distance = 2; distance > 0; distance /= 2) peak = fmaxf(peak, shuffled(peak, distance));
    peak = fmaxf(peak, largest);
    const float old = expf(largest - peak);
    largest = peak;
    sum *= old;
    // Rounded weights, and in the rows below what is missing of them: as good as weights of float32.
    uint32_t weights[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float first = expf(scores[2 * i] - peak), second = expf(scores[2 * i + 1] - peak);
      sum += first + second;
      const uint32_t pair = weights[2 * i] = rounded_pair<type>(first, second);
      weights[2 * i + 1] =
          rounded_pair<type>(first - number_of<type>(&pair, 0), second - number_of<type>(&pair, 1));
    }
#pragma unroll
    for (int j = 0; j < dim / 64; ++j) {
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        uint32_t pairs[2];  // number e of neighbouring positions
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          pairs[i] = __byte_perm(tile.values[2 * i][j].words[e / 2], tile.values[2 * i + 1][j].words[e / 2],
                                 e % 2 == 0 ? 0x5410 : 0x7632);
        }
        for (float& value : values[j][e]) value *= old;
        multiply_add<type>(values[j][e], weights, pairs);
      }
    }
  }
};

// Block (x, y, z): up to eight query heads over one key/value head; a piece of the row's positions; a row. A
// warp takes every eighth tile of positions.
template <FloatType type, int dim>
__global__ void __launch_bounds__(kGroupedThreads) grouped_attention_kernel(DecodeAttention attention) {
  constexpr int kPer = dim / kWarp;
  constexpr int64_t kBytes = dim * 2;
  __shared__ float warp_peaks[kGroupedWarps][kGroupedHeads][2];
  __shared__ FourFloats warp_values[kGroupedWarps][kGroupedHeads][dim / 4];
  const CacheLayout& cache = attention.cache;
  const int kv_heads = static_cast<int>(cache.kv_heads), group = static_cast<int>(attention.heads) / kv_heads;
  const int parts = (group + kGroupedHeads - 1) / kGroupedHeads;
  const int kv_head = static_cast<int>(blockIdx.x) / parts, part = static_cast<int>(blockIdx.x) % parts;
  const int first_head = kv_head * group + part * kGroupedHeads,
            heads = min(group - part * kGroupedHeads, kGroupedHeads);
  const int64_t piece_number = blockIdx.y, row = blockIdx.z;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4, t = lane % 4;
  let_the_next_start();

  // Lengths and the cache's past were there before the first kernel of the step: they need not be waited for.
  const int64_t past = attention.past_length[row];
  const Piece piece(past, piece_number, kTilePositions);
  char* const keys = cache_head(cache, 2 * attention.layer, kv_head, row);
  char* const values = cache_head(cache, 2 * attention.layer + 1, kv_head, row);
  const int64_t new_at = (row * kv_heads + kv_head) * kBytes;
  const HeadPositions positions{keys,
                                values,
                                static_cast<const char*>(attention.k) + new_at,
                                static_cast<const char*>(attention.v) + new_at,
                                past,
                                kBytes};
  int64_t first = piece.begin + warp * kTilePositions;
  PositionTile<dim> tile{};
  if (first < piece.cached_end) {
    positions.load_keys(first, piece.cached_end, lane, &tile);
    positions.load_values(first, piece.cached_end, lane, &tile);
  }
  wait_for_kernels_before();
  const auto has_new = [&](int64_t first) {
    return past >= first && past < min(first + kTilePositions, piece.end);
  };
  if (has_new(first)) {
    positions.load_keys(first, piece.end, lane, &tile);
    positions.load_values(first, piece.end, lane, &tile);
  }
  Vector q[dim / 32];  // of head g, as of keys
  const int64_t head = row * attention.heads + first_head + min(g, heads - 1);
#pragma unroll
  for (int j = 0; j < dim / 32; ++j)
    q[j] = static_cast<const Vector*>(attention.q)[(head * kBytes) / 16 + 4 * j + t];
  const float scale = 1.0f / sqrtf(static_cast<float>(dim));

  TileSums<type, dim> sums;
#pragma unroll 1
  while (first < piece.end) {
    float scores[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float products[4] = {};  // of head g: positions 2 t + 8 i and the next
#pragma unroll
      for (int j = 0; j < dim / 32; ++j) {
#pragma unroll
        for (int half = 0; half < 4; half += 2) {
          const uint32_t queries[4] = {q[j].words[half], 0, q[j].words[half + 1], 0};
          multiply_add<type>(products, queries, tile.keys[i][j].words + half);
        }
      }
      for (int k = 0; k < 2; ++k) {
        scores[2 * i + k] = first + 8 * i + 2 * t + k < piece.end ? products[k] * scale : -INFINITY;
      }
    }
    const int64_t next = first + kGroupedWarps * kTilePositions;
    if (next < piece.end) positions.load_keys(next, piece.end, lane, &tile);
    sums.add(scores, tile);
    if (next < piece.end) positions.load_values(next, piece.end, lane, &tile);
    if (part == 0 && has_new(first) && lane < 2 * kBytes / 16) {  // the new token is part of the past
      constexpr int kVectors = kBytes / 16;
      const bool is_key = lane < kVectors;
      reinterpret_cast<Vector*>((is_key ? keys : values) + past * kBytes)[lane % kVectors] =
          reinterpret_cast<const Vector*>(is_key ? positions.new_key : positions.new_value)[lane % kVectors];
    }
    first = next;
  }
  // A warp puts one head's together.
  for (int distance = 2; distance > 0; distance /= 2) sums.sum += shuffled(sums.sum, distance);
  if (t == 0) {
    warp_peaks[warp][g][0] = sums.largest;
    warp_peaks[warp][g][1] = sums.sum;
  }
#pragma unroll
  for (int i = 0; i < dim / 16; ++i) {  // four neighbours of product j, column 2 t + k
    const int j = i / 4, k = i / 2 % 2, e = i % 2 * 4;
    FourFloats four;
    for (int n = 0; n < 4; ++n) four.numbers[n] = sums.values[j][e + n][k] + sums.values[j][e + n][k + 2];
    warp_values[warp][g][four_place(16 * j + 4 * t + i % 4, g)] = four;
  }
  __syncthreads();
  const auto total = sum_of<kPer, kGroupedWarps>(
      [&](int other) { return warp_peaks[other][warp]; },
      [&](int other) {
        return warp_values[other][warp][four_place(lane * kPer / 4, warp)].numbers + lane * kPer % 4;
      });
  join_pieces<type>(attention, row, piece_number, first_head, heads, total);
}

}  // namespace qwen2vl::cuda
