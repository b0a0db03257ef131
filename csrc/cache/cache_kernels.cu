#include "cache/cache_kernels.h"
#include "cuda/launch.cuh"

namespace qwen2vl::cuda {

namespace {

struct AppendChunk {
  CacheAppend append;
  __device__ void operator()(int64_t index) const { append_chunk(append, index); }
};

struct CopyRowChunk {
  CacheRowCopy copy;
  __device__ void operator()(int64_t index) const { copy_row_chunk(copy, index); }
};

constexpr int kShiftThreads = 512;

// One block a head of one tensor. Positions go in rising order, a tile at a time: a tile is read by all
// threads before any of it is written, and what is written lies below all tiles that are still to be read,
// so that nobody need wait before the next.
__global__ void __launch_bounds__(kShiftThreads) shift_kernel(CacheShift shift) {
  const int64_t unit = blockIdx.x;
  const int64_t half = shift.cache.head_dim / 2, pairs = shift.count * half;
  for (int64_t begin = 0; begin < pairs; begin += kShiftThreads) {
    const int64_t index = begin + threadIdx.x;
    const int64_t position = index / half, column = index % half;
    ShiftedPair pair{};
    if (index < pairs) pair = read_shifted(shift, unit, position, column);
    __syncthreads();
    if (index < pairs) write_shifted(shift, unit, position, column, pair);
  }
}

}  // namespace

void cache_append(const CacheAppend& append, CUstream_st* stream) {
  const CacheLayout& cache = append.cache;
  const int64_t chunks =
      2 * append.rows * cache.kv_heads * append.tokens * cache.head_dim * float_size(cache.type) / 16;
  for_each(chunks, AppendChunk{append}, stream, "cache append");
}

void cache_copy_row(const CacheRowCopy& copy, CUstream_st* stream) {
  const CacheLayout& cache = copy.cache;
  const int64_t chunks =
      2 * cache.layers * cache.kv_heads * copy.length * cache.head_dim * float_size(cache.type) / 16;
  for_each(chunks, CopyRowChunk{copy}, stream, "cache row copy");
}

void cache_shift(const CacheShift& shift, CUstream_st* stream) {
  if (shift.count <= 0) return;
  const auto blocks = static_cast<unsigned>(2 * shift.cache.layers * shift.cache.kv_heads);
  launch(shift_kernel, blocks, kShiftThreads, stream, "cache shift", shift);
}

}  // namespace qwen2vl::cuda
