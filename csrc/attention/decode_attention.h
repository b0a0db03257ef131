#pragma once

#include <math.h>

#include <cstdint>

#include "cache/cache_kernels.h"

struct CUstream_st;

namespace qwen2vl {

// One token's attention for each of several rows, over the cache and the token itself, whose key and value
// are written to the cache, too: what TensorScatter and Attention do in the portable graph. Grouped queries:
// heads / kv_heads query heads share a key/value head. All numbers are of the cache's type; sums are float32.
struct DecodeAttention {
  CacheLayout cache;
  int64_t layer;
  int64_t rows, heads;         // cache rows 0 .. rows - 1
  const int64_t* past_length;  // [rows], positions that the cache holds before
  const void* q;               // [rows, heads * head_dim], rotated
  const void* k;               // [rows, kv_heads * head_dim], rotated
  const void* v;               // [rows, kv_heads * head_dim]
  void* output;                // [rows, heads * head_dim]
  void* scratch;               // decode_attention_scratch(..) bytes; zeroed before its first use
  int64_t early;               // as of LinearStep
};

// A GPU reads a row's past in so many pieces side by side, whatever the batch: a row's sums never depend on
// it.
constexpr int64_t kAttentionPieces = 32;

// A row's scratch memory, in floats: of each head a count of the pieces that are done, so many that what
// follows lies at a multiple of 16 bytes; of each head and piece the largest score and the weights' sum; of
// each the weighted values.
struct AttentionScratch {
  int64_t peaks, values, all;  // where these begin; the length

  QWEN2VL_HOST_DEVICE static AttentionScratch of(int64_t heads, int64_t head_dim) {
    const int64_t peaks = (heads + 3) / 4 * 4, values = peaks + 2 * heads * kAttentionPieces;
    return {peaks, values, values + heads * kAttentionPieces * head_dim};
  }
};

// Bytes of scratch memory for so many rows.
int64_t decode_attention_scratch(int64_t rows, int64_t heads, int64_t head_dim);

// Whether the GPU's kernel takes heads of this size.
bool decode_attention_fits(int64_t head_dim);

namespace cpu {
void decode_attention(const DecodeAttention& attention);
}
namespace cuda {
void decode_attention(const DecodeAttention& attention, CUstream_st* stream);
}

}  // namespace qwen2vl
