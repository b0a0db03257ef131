#pragma once

#include <math.h>

#include <cstdint>

#include "common/float_type.h"
#include "common/host_device.h"

struct CUstream_st;

namespace qwen2vl {

// How a layer's matrix lies in memory, K inputs and N outputs.
enum class MatrixForm : int32_t {
  kPlain,    // [N, K], numbers of the step's type
  kBlocks4,  // codes in blocks of K, uint8 [N, blocks, block / 2]: two codes a byte, the first in its low
             // half
  kBlocks8,  // uint8 [N, blocks, block]
};

struct DeviceMatrix {
  const void* weights;
  const void* scales;          // [N, blocks], of the step's type; blocks only
  const uint8_t* zero_points;  // [N, bytes of a row], packed as the codes; null: 8 and 128
  const void* bias;            // [N] or null
  int64_t outputs;             // N
  void* result;                // [rows, N]; of a gated step only the first matrix' is written
};

constexpr int32_t kMostMatrices = 3;

// Up to three layers over one input, with what stands around them in a decoder: y_i = norm(x) W_i (+ bias_i).
// All numbers are of one type, but for the results, which may be float32 instead; [rows, ..] row by row. Sums
// are float32, and rounded once, at the very end.
struct LinearStep {
  FloatType type, result_type;
  MatrixForm form;
  int32_t early;  // a GPU may start before what is queued in front of it is done: all but the weights waits
                  // for that
  int64_t rows, inputs;  // K
  int64_t block;         // inputs that share a scale
  const void* x;         // [rows, K]
  const void* norm;   // RMS norm's weight [K], or null: x as it is. The normalised input is rounded to `type`
  float epsilon;      // the norm's
  const void* added;  // [rows, N], added to the result of the only matrix, or null
  int32_t matrices;
  int32_t gated;     // two matrices: silu(y_0) * y_1 is the one result
  int32_t rotated;   // so many matrices' results are turned, head by head, as RotaryEmbedding turns them
  int64_t head_dim;  // of these
  const void* cos;   // [rows, head_dim / 2]
  const void* sin;
  DeviceMatrix matrix[kMostMatrices];
};

// Few rows share one pass over the weights; more are worth a product of matrices.
constexpr int64_t kFewLinearRows = 8;

// Bytes of scratch memory that a step takes on a GPU, at addresses that are multiples of 256.
int64_t linear_scratch_bytes(const LinearStep& step);

namespace cpu {
void linear(const LinearStep& step);
}
namespace cuda {
void linear(const LinearStep& step, void* scratch, CUstream_st* stream);
}

// --- one number of each part, for the CPU and the GPU ----------------------------------------------------

// What a block's codes stand for.
struct BlockScale {
  int zero;
  float scale;
  QWEN2VL_HOST_DEVICE float operator()(int code) const { return static_cast<float>(code - zero) * scale; }
};

// Of the block that input k of output n is in.
QWEN2VL_HOST_DEVICE BlockScale block_scale(const LinearStep& step, const DeviceMatrix& matrix, int64_t n,
                                           int64_t k) {
  const int64_t blocks = (step.inputs + step.block - 1) / step.block, block = k / step.block;
  const float scale = load_float(matrix.scales, step.type, n * blocks + block);
  if (step.form == MatrixForm::kBlocks8) {
    return {matrix.zero_points == nullptr ? 128 : matrix.zero_points[n * blocks + block], scale};
  }
  if (matrix.zero_points == nullptr) return {8, scale};
  return {matrix.zero_points[n * ((blocks + 1) / 2) + block / 2] >> (block % 2 * 4) & 15, scale};
}

QWEN2VL_HOST_DEVICE int block_code(const LinearStep& step, const DeviceMatrix& matrix, int64_t n, int64_t k) {
  const int64_t at = n * ((step.inputs + step.block - 1) / step.block) * step.block + k;
  const auto* const codes = static_cast<const uint8_t*>(matrix.weights);
  return step.form == MatrixForm::kBlocks8 ? codes[at] : codes[at / 2] >> (at % 2 * 4) & 15;
}

// A matrix' weight from input k to output n.
QWEN2VL_HOST_DEVICE float linear_weight(const LinearStep& step, const DeviceMatrix& matrix, int64_t n,
                                        int64_t k) {
  if (step.form == MatrixForm::kPlain) return load_float(matrix.weights, step.type, n * step.inputs + k);
  return block_scale(step, matrix, n, k)(block_code(step, matrix, n, k));
}

QWEN2VL_HOST_DEVICE float rounded(float value, FloatType type) {
  if (type == FloatType::kFloat32) return value;
  return type == FloatType::kBFloat16 ? bfloat16_to_float(float_to_bfloat16(value))
                                      : float16_to_float(float_to_float16(value));
}

// The pair of outputs that are finished together: those that a rotation mixes, else neighbours. Unit u of
// matrix m; the second may be beyond the last.
struct OutputPair {
  int64_t first, second;
};
QWEN2VL_HOST_DEVICE OutputPair output_pair(const LinearStep& step, int32_t m, int64_t unit) {
  if (m >= step.rotated) return {2 * unit, 2 * unit + 1};
  // 32 bits: a GPU takes hundreds of instructions for a division of 64.
  const auto half = static_cast<uint32_t>(step.head_dim / 2), number = static_cast<uint32_t>(unit);
  const int64_t first = number / half * int64_t{2} * half + number % half;
  return {first, first + half};
}

// What is added to a pair's sums, and turns them, as it lies in memory: who loads it need not wait for it.
// Zeros where there is nothing. (`type` is the step's, which a kernel's compiler knows.)
struct PairTerms {
  uint32_t bias[2], added[2], cos, sin;
};
QWEN2VL_HOST_DEVICE PairTerms pair_terms(const LinearStep& step, FloatType type, int32_t m, int64_t row,
                                         OutputPair pair) {
  const DeviceMatrix& matrix = step.matrix[m];
  const DeviceMatrix& other = step.gated ? step.matrix[1] : matrix;
  const int64_t second =
      pair.second < other.outputs ? pair.second : pair.first;  // beyond the last nobody looks
  PairTerms terms{};
  if (matrix.bias != nullptr) terms.bias[0] = load_bits(matrix.bias, type, pair.first);
  if (other.bias != nullptr) terms.bias[1] = load_bits(other.bias, type, second);
  if (step.added != nullptr) {
    terms.added[0] = load_bits(step.added, type, row * matrix.outputs + pair.first);
    terms.added[1] = load_bits(step.added, type, row * matrix.outputs + second);
  }
  if (m < step.rotated) {
    const int64_t column =
        row * (step.head_dim / 2) + static_cast<uint32_t>(pair.first) % static_cast<uint32_t>(step.head_dim);
    terms.cos = load_bits(step.cos, type, column);
    terms.sin = load_bits(step.sin, type, column);
  }
  return terms;
}

// Bias, rotation, gate, residual, and the one rounding: sums of matrix m's outputs `pair` (of a gated step:
// `first` is output pair.first of the first matrix, `second` that of the second) to results.
QWEN2VL_HOST_DEVICE void finish_pair(const LinearStep& step, FloatType type, int32_t m, int64_t row,
                                     OutputPair pair, const PairTerms& terms, float first, float second) {
  const DeviceMatrix& matrix = step.matrix[m];
  const FloatType result_type = step.result_type == FloatType::kFloat32 ? FloatType::kFloat32 : type;
  const int64_t at = row * matrix.outputs;
  first += float_of_bits(terms.bias[0], type);
  second += float_of_bits(terms.bias[1], type);
  if (step.gated) {
    store_float(matrix.result, result_type, at + pair.first, first / (1.0f + expf(-first)) * second);
    return;
  }
  if (m < step.rotated) {
    const float left = first, right = second;
    const float cos = float_of_bits(terms.cos, type), sin = float_of_bits(terms.sin, type);
    first = left * cos - right * sin;
    second = right * cos + left * sin;
  }
  first += float_of_bits(terms.added[0], type);
  second += float_of_bits(terms.added[1], type);
  store_float(matrix.result, result_type, at + pair.first, first);
  if (pair.second < matrix.outputs) store_float(matrix.result, result_type, at + pair.second, second);
}
QWEN2VL_HOST_DEVICE void finish_pair(const LinearStep& step, FloatType type, int32_t m, int64_t row,
                                     OutputPair pair, float first, float second) {
  finish_pair(step, type, m, row, pair, pair_terms(step, type, m, row, pair), first, second);
}

// Units of matrix m that finish_pair takes: pairs of outputs, or single ones of a gated step.
QWEN2VL_HOST_DEVICE int64_t output_units(const LinearStep& step, int32_t m) {
  return step.gated ? step.matrix[m].outputs : (step.matrix[m].outputs + 1) / 2;
}

}  // namespace qwen2vl
