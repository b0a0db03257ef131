#include <cuda_runtime.h>

#include "attention/attention_pieces.cuh"
#include "attention/grouped_attention.cuh"
#include "cuda/launch.cuh"
#include "cuda/stream.h"

namespace qwen2vl::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// Numbers and heads that tensor cores don't take, float32 first of all. Block (x, y, z): a query head; a
// piece of the row's positions; a row. A warp takes every eighth position, a lane `per` numbers of it.
template <FloatType type, int per>
__global__ void __launch_bounds__(kThreads) single_head_kernel(DecodeAttention attention) {
  constexpr int kDim = per * kWarp;
  __shared__ float warp_peaks[kWarps][2], warp_values[kWarps][kDim];
  const CacheLayout& cache = attention.cache;
  const int64_t head = blockIdx.x, piece_number = blockIdx.y, row = blockIdx.z;
  const int64_t group = attention.heads / cache.kv_heads, kv_head = head / group;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  let_the_next_start();
  wait_for_kernels_before();

  const int64_t past = attention.past_length[row];
  const Piece piece(past, piece_number, kWarps);
  char* const keys = cache_head(cache, 2 * attention.layer, kv_head, row);
  char* const values = cache_head(cache, 2 * attention.layer + 1, kv_head, row);
  const float scale = 1.0f / sqrtf(static_cast<float>(kDim));
  const auto number = [&](const void* data, int64_t vector, int i) {
    return load_float(data, type, vector * kDim + lane * per + i);
  };
  float q[per];
  for (int i = 0; i < per; ++i) q[i] = number(attention.q, row * attention.heads + head, i);
  Sums<per> sums;
  sums.clear();
#pragma unroll 1
  for (int64_t position = piece.begin + warp; position < piece.end; position += kWarps) {
    const bool is_new = position == past;
    const int64_t vector = is_new ? row * cache.kv_heads + kv_head : position;
    float score = 0, value[per];
    for (int i = 0; i < per; ++i) {
      const float k = number(is_new ? attention.k : keys, vector, i);
      score = fmaf(q[i], k, score);
      value[i] = number(is_new ? attention.v : values, vector, i);
      if (is_new && head % group == 0) {
        store_float(keys, type, past * kDim + lane * per + i, k);
        store_float(values, type, past * kDim + lane * per + i, value[i]);
      }
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2) score += shuffled(score, distance);
    sums.add(score * scale, value);
  }
  if (lane == 0) {
    warp_peaks[warp][0] = sums.largest;
    warp_peaks[warp][1] = sums.sum;
  }
  for (int i = 0; i < per; ++i) warp_values[warp][lane * per + i] = sums.values[i];
  __syncthreads();
  sums = sum_of<per, kWarps>([&](int other) { return warp_peaks[other]; },
                             [&](int other) { return &warp_values[other][lane * per]; });
  join_pieces<type>(attention, row, piece_number, head, 1, sums);
}

template <FloatType type>
void launch_decode(const DecodeAttention& attention, StreamHandle stream) {
  const int64_t kv_heads = attention.cache.kv_heads, dim = attention.cache.head_dim;
  const Start start = attention.early != 0 ? Start::kEarly : Start::kInTurn;
  const auto queue = [&](auto kernel, int64_t blocks) {
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(kAttentionPieces),
                    static_cast<unsigned>(attention.rows));
    launch(start, kernel, grid, kThreads, stream, "attention", attention);
  };
  if (dim == 32) return queue(single_head_kernel<type, 1>, attention.heads);
  if constexpr (type == FloatType::kFloat32) {
    if (dim == 64) return queue(single_head_kernel<type, 2>, attention.heads);
    if (dim == 128) return queue(single_head_kernel<type, 4>, attention.heads);
  } else {
    const int64_t blocks = kv_heads * grouped_attention_parts(attention.heads / kv_heads);
    if (dim == 64) return queue(grouped_attention_kernel<type, 64>, blocks);
    if (dim == 128) return queue(grouped_attention_kernel<type, 128>, blocks);
  }
  throw DeviceError("no attention kernel for heads of this size");
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
