#include <cuda_runtime.h>

#include "attention/decode_attention.h"
#include "cuda/launch.cuh"
#include "cuda/stream.h"
#include "cuda/words.cuh"

namespace qwen2vl::cuda {

namespace {

constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kHeads = 4;  // query heads that a block takes over one key/value head

constexpr int kTogether =
    4;  // positions that a warp takes at once, so that their loads are under way together
// Below every score, and a number: what is weighted by exp(kLowest - another) counts nothing.
constexpr float kLowest = -1e30f;

// What a lane holds of a head as it lies in memory: `per` neighbouring numbers.
template <FloatType type, int per>
struct Part {
  static constexpr int kBytes = per * (type == FloatType::kFloat32 ? 4 : 2);
  struct alignas(kBytes) Words {
    uint16_t halves[kBytes / 2];
  } words;

  __device__ static Part load(const void* data, int64_t at) {  // at: a multiple of `per`
    return {static_cast<const Words*>(data)[at / per]};
  }
  __device__ float operator[](int i) const { return load_float(words.halves, type, i); }
};

// Softmax sums of some positions: the largest score, the weights' sum, and of the weighted values a lane's
// part.
template <int per>
struct Sums {
  float largest, sum, values[per];

  __device__ void clear() {
    largest = kLowest;
    sum = 0;
    for (int i = 0; i < per; ++i) values[i] = 0;
  }
  // A new largest score: what is there counts less.
  __device__ void raise(float score) {
    const float peak = fmaxf(largest, score), weight = expf(largest - peak);
    sum *= weight;
    for (int i = 0; i < per; ++i) values[i] *= weight;
    largest = peak;
  }
  // Takes in other sums, `weight` of exp(their largest).
  __device__ void add(float other_largest, float other_sum, const float* other_values) {
    raise(other_largest);
    const float weight = expf(other_largest - largest);
    sum = fmaf(other_sum, weight, sum);
    for (int i = 0; i < per; ++i) values[i] = fmaf(other_values[i], weight, values[i]);
  }
};

// A row's scratch memory: of each head a count of the pieces that are done; of each head and piece the
// largest score and the weights' sum; their weighted values.
struct Pieces {
  int32_t* done;
  float *peaks, *values;
};
__device__ Pieces pieces_of(const DecodeAttention& attention, int64_t row) {
  const int64_t heads = attention.heads, all = heads * kAttentionPieces;
  auto* const memory =
      static_cast<float*>(attention.scratch) + row * (heads + all * (2 + attention.cache.head_dim));
  return {reinterpret_cast<int32_t*>(memory), memory + heads, memory + heads + 2 * all};
}

template <FloatType type, int per>
__device__ float dot(const float* q, const Part<type, per>& k) {
  float score = 0;
  for (int i = 0; i < per; ++i) score = fmaf(q[i], k[i], score);
  return score;
}

// Block (x, y, z): some query heads over one key/value head; a piece of the row's positions; a row. A warp
// takes every eighth position. The block that is the last of its heads' puts the pieces together.
template <FloatType type, int per>
__global__ void __launch_bounds__(kThreads, type == FloatType::kFloat32 ? 1 : 2)
    decode_kernel(DecodeAttention attention) {
  constexpr int kDim = per * kWarp, kStride = kWarps * kTogether;
  __shared__ float peaks[kWarps][kHeads][2];
  __shared__ float values[kWarps][kHeads][kDim];
  __shared__ int32_t is_last;
  const CacheLayout& cache = attention.cache;
  const int kv_heads = static_cast<int>(cache.kv_heads), group = static_cast<int>(attention.heads) / kv_heads;
  const int parts = (group + kHeads - 1) / kHeads;
  const int kv_head = static_cast<int>(blockIdx.x) / parts, part = static_cast<int>(blockIdx.x) % parts;
  const int first_head = kv_head * group + part * kHeads, heads = min(group - part * kHeads, kHeads);
  const int64_t piece = blockIdx.y, row = blockIdx.z;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  let_the_next_start();

  // Lengths and the cache's past were there before the first kernel of the step: they need not be waited for.
  const int64_t past = attention.past_length[row], length = past + 1;
  const int64_t each = (length + kAttentionPieces - 1) / kAttentionPieces;
  const int64_t begin = piece * each, end = min(begin + each, length), cached = min(end, past);
  char* const keys = cache_head(cache, 2 * attention.layer, kv_head, row);
  char* const row_values = cache_head(cache, 2 * attention.layer + 1, kv_head, row);
  struct Positions {
    Part<type, per> k[kTogether], v[kTogether];
  };
  const auto load = [&](int64_t first) {
    Positions loaded;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {  // beyond the last the last, whose weight is 0
      const int64_t at = min(first + i * kWarps, cached - 1) * kDim + lane * per;
      loaded.k[i] = Part<type, per>::load(keys, at);
      loaded.v[i] = Part<type, per>::load(row_values, at);
    }
    return loaded;
  };
  int64_t position = begin + warp;
  Positions now{};
  if (position < cached) now = load(position);
  wait_for_kernels_before();

  const float scale = 1.0f / sqrtf(static_cast<float>(kDim));
  float q[kHeads][per];
  Sums<per> sums[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    sums[h].clear();
    const int64_t head = row * attention.heads + first_head + min(h, heads - 1);
    const auto loaded = Part<type, per>::load(attention.q, head * kDim + lane * per);
    for (int i = 0; i < per; ++i) q[h][i] = loaded[i];
  }
  while (position < cached) {
    Positions next = now;
    if (position + kStride < cached) next = load(position + kStride);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float scores[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) scores[i] = dot(q[h], now.k[i]);
#pragma unroll
      for (int distance = kWarp / 2; distance > 0; distance /= 2) {
#pragma unroll
        for (int i = 0; i < kTogether; ++i) scores[i] += shuffled(scores[i], distance);
      }
      float peak = kLowest;
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        scores[i] = position + i * kWarps < cached ? scores[i] * scale : -INFINITY;
        peak = fmaxf(peak, scores[i]);
      }
      sums[h].raise(peak);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const float weight = expf(scores[i] - sums[h].largest);
        sums[h].sum += weight;
        for (int j = 0; j < per; ++j) sums[h].values[j] = fmaf(weight, now.v[i][j], sums[h].values[j]);
      }
    }
    now = next;
    position += kStride;
  }
  if (past < end && past >= begin && warp == kWarps - 1) {  // the new token
    const int64_t at = (row * kv_heads + kv_head) * kDim + lane * per;
    const auto k = Part<type, per>::load(attention.k, at), v = Part<type, per>::load(attention.v, at);
    float number[per];
    for (int i = 0; i < per; ++i) number[i] = v[i];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float score = dot(q[h], k);
      for (int distance = kWarp / 2; distance > 0; distance /= 2) score += shuffled(score, distance);
      sums[h].add(score * scale, 1.0f, number);
    }
    if (part == 0) {
      for (int i = 0; i < per; ++i) {
        store_float(keys, type, past * kDim + lane * per + i, k[i]);
        store_float(row_values, type, past * kDim + lane * per + i, v[i]);
      }
    }
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (lane == 0) {
      peaks[warp][h][0] = sums[h].largest;
      peaks[warp][h][1] = sums[h].sum;
    }
    for (int i = 0; i < per; ++i) values[warp][h][lane * per + i] = sums[h].values[i];
  }
  __syncthreads();

  // A warp puts one head's together, of the block's warps and then of all pieces.
  const Pieces pieces = pieces_of(attention, row);
  const int64_t head = int64_t{first_head} + warp;
  if (warp < heads) {
    Sums<per> total;
    total.clear();
    for (int other = 0; other < kWarps; ++other) {
      total.add(peaks[other][warp][0], peaks[other][warp][1], &values[other][warp][lane * per]);
    }
    const int64_t slot = head * kAttentionPieces + piece;
    if (lane == 0) {
      pieces.peaks[2 * slot] = total.largest;
      pieces.peaks[2 * slot + 1] = total.sum;
    }
    for (int i = 0; i < per; ++i) pieces.values[slot * kDim + lane * per + i] = total.values[i];
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* const done = pieces.done + first_head;
    is_last = atomicAdd(done, 1) == kAttentionPieces - 1 ? 1 : 0;
    if (is_last) *done = 0;
    __threadfence();
  }
  __syncthreads();
  if (is_last == 0 || warp >= heads) return;
  // What other blocks wrote is not looked for in this multiprocessor's cache. A lane knows one piece's
  // weight.
  static_assert(kAttentionPieces == kWarp);
  const int64_t first_slot = head * kAttentionPieces;
  const float piece_peak = __ldcg(pieces.peaks + 2 * (first_slot + lane));
  const float piece_sum = __ldcg(pieces.peaks + 2 * (first_slot + lane) + 1);
  float largest = piece_peak;
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    largest = fmaxf(largest, shuffled(largest, distance));
  const float weight = expf(piece_peak - largest);  // 0 of a piece without positions
  float sum = piece_sum * weight, total[per] = {};
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += shuffled(sum, distance);
#pragma unroll 8
  for (int other = 0; other < kWarp; ++other) {
    const float share = __shfl_sync(0xFFFFFFFFu, weight, other);
    const float* const value = pieces.values + (first_slot + other) * kDim + lane * per;
    for (int i = 0; i < per; ++i) total[i] = fmaf(share, __ldcg(value + i), total[i]);
  }
  for (int i = 0; i < per; ++i) {
    store_float(attention.output, type, (row * attention.heads + head) * kDim + lane * per + i,
                total[i] / sum);
  }
}

template <FloatType type>
void launch_decode(const DecodeAttention& attention, StreamHandle stream) {
  const int64_t group = attention.heads / attention.cache.kv_heads, parts = (group + kHeads - 1) / kHeads;
  const dim3 blocks(static_cast<unsigned>(attention.cache.kv_heads * parts),
                    static_cast<unsigned>(kAttentionPieces), static_cast<unsigned>(attention.rows));
  const Start start = attention.early != 0 ? Start::kEarly : Start::kInTurn;
  switch (attention.cache.head_dim) {
    case 32:
      return launch(start, decode_kernel<type, 1>, blocks, kThreads, stream, "attention", attention);
    case 64:
      return launch(start, decode_kernel<type, 2>, blocks, kThreads, stream, "attention", attention);
    case 128:
      return launch(start, decode_kernel<type, 4>, blocks, kThreads, stream, "attention", attention);
    default:
      throw DeviceError("no attention kernel for heads of this size");
  }
}

}  // namespace

void decode_attention(const DecodeAttention& attention, CUstream_st* stream) {
  if (attention.rows <= 0) return;
  switch (attention.cache.type) {
    case FloatType::kFloat32:
      return launch_decode<FloatType::kFloat32>(attention, stream);
    case FloatType::kBFloat16:
      return launch_decode<FloatType::kBFloat16>(attention, stream);
    case FloatType::kFloat16:
      return launch_decode<FloatType::kFloat16>(attention, stream);
  }
}

}  // namespace qwen2vl::cuda
