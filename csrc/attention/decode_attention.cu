#include <cuda_runtime.h>

#include "attention/decode_attention.h"
#include "cuda/launch.cuh"
#include "cuda/stream.h"
#include "cuda/words.cuh"

namespace qwen2vl::cuda {

namespace {

constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kHeads = 4;  // query heads that a block takes over one key/value head

// What a lane holds of a head: `per` neighbouring numbers.
template <FloatType type, int per>
__device__ void load_lane(const void* data, int64_t at, float* values) {
  constexpr int kWords = per * (type == FloatType::kFloat32 ? 4 : 2) / 4;
  struct alignas(kWords == 0 ? 4 : 4 * kWords) Words {
    uint32_t words[kWords == 0 ? 1 : kWords];
  };
  if constexpr (kWords == 0) {  // one 16-bit number
    values[0] = load_float(data, type, at);
  } else {
    const Words loaded = static_cast<const Words*>(data)[at / per];
    for (int i = 0; i < per; ++i) values[i] = number_of<type>(loaded.words, i);
  }
}

// Softmax sums of some positions: the largest score, the weights' sum, and of the weighted values a lane's
// part.
template <int per>
struct Sums {
  float largest, sum, values[per];

  __device__ void clear() {
    largest = -INFINITY;
    sum = 0;
    for (int i = 0; i < per; ++i) values[i] = 0;
  }
  // Takes in other sums, `weight` of exp(their largest).
  __device__ void add(float other_largest, float other_sum, const float* other_values) {
    const float peak = fmaxf(largest, other_largest);
    if (peak == -INFINITY) return;
    const float mine = expf(largest - peak), theirs = expf(other_largest - peak);
    sum = sum * mine + other_sum * theirs;
    for (int i = 0; i < per; ++i) values[i] = values[i] * mine + other_values[i] * theirs;
    largest = peak;
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

// Block (x, y, z): some query heads over one key/value head; a piece of the row's positions; a row. A warp
// takes every eighth position. The block that is the last of its heads' puts the pieces together.
template <FloatType type, int per>
__global__ void __launch_bounds__(kThreads, 2) decode_kernel(DecodeAttention attention) {
  constexpr int kDim = per * kWarp;
  __shared__ float peaks[kWarps][kHeads][2];
  __shared__ float values[kWarps][kHeads][kDim];
  __shared__ int32_t is_last;
  const CacheLayout& cache = attention.cache;
  const int64_t group = attention.heads / cache.kv_heads, parts = (group + kHeads - 1) / kHeads;
  const int64_t kv_head = blockIdx.x / parts, piece = blockIdx.y, row = blockIdx.z;
  const int64_t first_head = kv_head * group + blockIdx.x % parts * kHeads;
  const int64_t end_head = (kv_head + 1) * group;
  const int heads = static_cast<int>(end_head - first_head < kHeads ? end_head - first_head : kHeads);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;

  const int64_t past = attention.past_length[row], length = past + 1;
  const int64_t each = (length + kAttentionPieces - 1) / kAttentionPieces;
  const int64_t begin = piece * each, end = begin + each < length ? begin + each : length;
  const int64_t unit = 2 * attention.layer * cache.kv_heads + kv_head;
  char* const keys = cache_head(cache, unit, row);
  char* const row_values = cache_head(cache, unit + cache.kv_heads, row);
  const int64_t fresh = (row * cache.kv_heads + kv_head) * kDim + lane * per;  // of the new token

  const float scale = 1.0f / sqrtf(static_cast<float>(kDim));
  float q[kHeads][per];
  Sums<per> sums[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    sums[h].clear();
    const int64_t head = first_head + (h < heads ? h : 0);
    load_lane<type, per>(attention.q, (row * attention.heads + head) * kDim + lane * per, q[h]);
  }
  for (int64_t position = begin + warp; position < end; position += kWarps) {
    float k[per], v[per];
    const int64_t at = position * kDim + lane * per;
    if (position < past) {
      load_lane<type, per>(keys, at, k);
      load_lane<type, per>(row_values, at, v);
    } else {
      load_lane<type, per>(attention.k, fresh, k);
      load_lane<type, per>(attention.v, fresh, v);
      if (blockIdx.x % parts == 0) {
        for (int i = 0; i < per; ++i) {
          store_float(keys, type, at + i, k[i]);
          store_float(row_values, type, at + i, v[i]);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float score = 0;
      for (int i = 0; i < per; ++i) score = fmaf(q[h][i], k[i], score);
      for (int distance = kWarp / 2; distance > 0; distance /= 2) score += shuffled(score, distance);
      sums[h].add(score * scale, 1.0f, v);
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
  const int64_t head = first_head + warp;
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
  Sums<per> total;
  total.clear();
  for (int64_t other = 0; other < kAttentionPieces; ++other) {
    const int64_t slot = head * kAttentionPieces + other;
    // What other blocks wrote is not looked for in this multiprocessor's cache.
    const volatile float* const peak = pieces.peaks + 2 * slot;
    const volatile float* const value = pieces.values + slot * kDim + lane * per;
    float taken[per];
    for (int i = 0; i < per; ++i) taken[i] = value[i];
    total.add(peak[0], peak[1], taken);
  }
  for (int i = 0; i < per; ++i) {
    store_float(attention.output, type, (row * attention.heads + head) * kDim + lane * per + i,
                total.values[i] / total.sum);
  }
}

template <FloatType type>
void launch_decode(const DecodeAttention& attention, StreamHandle stream) {
  const int64_t group = attention.heads / attention.cache.kv_heads, parts = (group + kHeads - 1) / kHeads;
  const dim3 blocks(static_cast<unsigned>(attention.cache.kv_heads * parts),
                    static_cast<unsigned>(kAttentionPieces), static_cast<unsigned>(attention.rows));
  switch (attention.cache.head_dim) {
    case 32:
      return launch(decode_kernel<type, 1>, blocks, kThreads, stream, "attention", attention);
    case 64:
      return launch(decode_kernel<type, 2>, blocks, kThreads, stream, "attention", attention);
    case 128:
      return launch(decode_kernel<type, 4>, blocks, kThreads, stream, "attention", attention);
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
