#pragma once

#include <cstddef>
#include <cstdint>

namespace qwen2vl {

// Queries over a head's packed keys and values. Scores exist for a block of keys at a time.
struct AttentionBlock {
  const float* const* queries;  // [rows] -> [dim]
  float* const* outputs;        // [rows] -> [dim]
  const int64_t* visible;       // [rows]: a row sees the keys [0, visible), at least one
  int64_t rows;                 // at most AttentionKernels::kQueryRows
  int64_t dim;
  const void* keys;    // packed
  const void* values;  // packed
  float scale;         // of the scores
};

// A few queries over some of the keys and values as they lie in a cache. The result is a partial one, so that
// the parts of a long cache can be computed side by side.
struct AttentionPart {
  const float* const* queries;  // [rows] -> [dim]
  const int64_t* visible;       // [rows]
  int64_t rows;                 // at most AttentionKernels::kPartRows
  int64_t dim;                  // a multiple of 16
  const float* keys;            // [*, dim]
  const float* values;          // [*, dim]
  int64_t begin, end;           // the keys of this part
  float scale;                  // of the scores
  float* sums;                  // out [rows, dim]: values times weights
  float* weights;               // out [rows]: sum of the weights, which are 2^(score - peak)
  float* peaks;                 // out [rows]: the largest score, in units of log 2
};

// Numbers of a packed key or value: the last ones may be zeros.
constexpr int64_t padded_dim(int64_t dim) { return (dim + 15) / 16 * 16; }

// Bytes of a packed key: its numbers, and what codes count in.
constexpr int64_t packed_key_bytes(int64_t dim, int64_t number_bytes, int64_t scale_bytes) {
  return padded_dim(dim) * number_bytes + scale_bytes;
}

// A packed query beside its numbers.
struct PackedQuery {
  float scale;    // what its scores are multiplied by
  int32_t total;  // the sum of its codes, where its numbers are codes
};

// Attention's inner loops for one instruction set.
struct AttentionKernels {
  static constexpr int64_t kQueryRows = 48;  // of an AttentionBlock
  static constexpr int64_t kPartRows = 6;    // of an AttentionPart
  static constexpr int64_t kPackRows = 64;   // keys and values are packed in multiples of this

  const char* name;
  int64_t key_number_bytes, key_scale_bytes;  // of a packed key: each number, and what its codes count in
  int64_t value_number_bytes;
  const AttentionKernels*
      finer;  // those for heads that codes are too coarse for; null where keys are no codes

  bool in_codes() const { return finer != nullptr; }

  // Bytes that packed keys, or packed values, take before the one at `index`, a multiple of kPackRows.
  size_t key_offset(int64_t index, int64_t dim) const {
    return static_cast<size_t>(index) * packed_key_bytes(dim, key_number_bytes, key_scale_bytes);
  }
  size_t value_offset(int64_t index, int64_t dim) const {
    return static_cast<size_t>(index) * (padded_dim(dim) * value_number_bytes);
  }

  // A head's numbers i and i + dim / 2, a pair, turned by the angle i: from, to [dim], cos, sin [dim / 2].
  void (*rotate)(const float* from, const float* cos, const float* sin, int64_t dim, float* to);

  // rows [count, dim], `stride` numbers apart. What is missing from a multiple of kPackRows becomes zero.
  void (*pack_keys)(const float* rows, int64_t stride, int64_t count, int64_t dim, void* packed);
  void (*pack_values)(const float* rows, int64_t stride, int64_t count, int64_t dim, void* packed);

  // Working memory of the two below, aligned to 64.
  size_t (*scratch_bytes)(int64_t dim);
  void (*attend)(const AttentionBlock& block, void* scratch);
  // Null where numbers are rounded: a few queries are bound by the reading of the cache, which is float32.
  void (*attend_part)(const AttentionPart& part, void* scratch);
};

// Numbers of a head that the kernels can take: even, and at most this many.
constexpr int64_t kMostAttentionDim = 256;

// The kernels of each instruction set, null where the compiler's target is another processor.
const AttentionKernels* portable_attention_kernels();
const AttentionKernels* avx2_attention_kernels();
const AttentionKernels* avx512_attention_kernels();
const AttentionKernels* avx512_bfloat16_attention_kernels();
const AttentionKernels* avx512_codes_attention_kernels();

// What products of queries and keys, and of weights and values, are of.
enum class AttentionNumbers {
  kFloat32,
  kBfloat16,  // both
  kCodes,     // 8-bit codes, and bfloat16
};

// The best of them that this CPU runs (common/instruction_set.h); where it has no products of such numbers,
// those of float32.
const AttentionKernels& attention_kernels(AttentionNumbers numbers);

}  // namespace qwen2vl
