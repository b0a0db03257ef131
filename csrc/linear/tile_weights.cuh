#pragma once

#include <cuda_runtime.h>

#include "cuda/tensor_core.cuh"
#include "cuda/words.cuh"
#include "linear/weight_stages.cuh"

// Codes of 4 and 8 bits as the 16-bit numbers that tensor cores multiply: exact, since none has more than
// nine bits with its sign. A block's scale comes behind the product.
namespace qwen2vl::cuda {

// Both halves of a word.
__device__ constexpr uint32_t twice(uint32_t half) { return half << 16 | half; }

// A small whole number in the last bits of a large one: bfloat16's 128, float16's 1024, float32's 2^23.
template <FloatType type>
constexpr uint32_t kLarge = type == FloatType::kBFloat16 ? 0x4300 : 0x6400;
constexpr uint32_t kLargeFloat = 0x4B000000u, kNegative = 0x8000;

// Unpacks codes less their zero point. (A host's compiler reads what initialises a member, but no body.)
template <FloatType type, MatrixForm form>
struct Codes;

// Of a word of eight codes pair i is codes i and i + 4.
template <FloatType type>
struct Codes<type, MatrixForm::kBlocks4> {
  uint32_t less_zero;  // twice: what takes the large number and the zero point away

  // `zeros`: the zero point in the last bits.
  __device__ explicit Codes(uint32_t zeros) {
    const uint32_t zero = __byte_perm(zeros, 0, 0x4040);
    less_zero = and_or(zero, twice(0x000F), twice(kLarge<type> | kNegative));
  }
  __device__ uint32_t pair(uint32_t word, int i) const {
    return add_pairs<type>(and_or(word >> 4 * i, twice(0x000F), twice(kLarge<type>)), less_zero);
  }
};

// Of a word of four codes pair i is codes 2 i and 2 i + 1.
template <>
struct Codes<FloatType::kFloat16, MatrixForm::kBlocks8> {
  uint32_t less_zero;

  __device__ explicit Codes(uint32_t zeros) {
    less_zero = __byte_perm(zeros, kLarge<FloatType::kFloat16> | kNegative, 0x5050);
  }
  __device__ uint32_t pair(uint32_t word, int i) const {
    const uint32_t large = __byte_perm(word, kLarge<FloatType::kFloat16>, i == 0 ? 0x5150 : 0x5352);
    return add_pairs<FloatType::kFloat16>(large, less_zero);
  }
};
// bfloat16 has eight bits: by way of float32, whose upper half is all that such a number has.
template <>
struct Codes<FloatType::kBFloat16, MatrixForm::kBlocks8> {
  float less_zero;

  __device__ explicit Codes(uint32_t zeros) {
    less_zero = float_from_bits(__byte_perm(zeros, kLargeFloat | kNegative << 16, 0x7440));
  }
  __device__ uint32_t pair(uint32_t word, int i) const {
    return __byte_perm(whole(word, 2 * i), whole(word, 2 * i + 1), 0x7632);
  }

 private:
  __device__ uint32_t whole(uint32_t word, int i) const {
    return bits_of_float(float_from_bits(__byte_perm(word, kLargeFloat, 0x7440u | i)) + less_zero);
  }
};

// Scales and zero points of one row in a stage.
template <FloatType type, MatrixForm form>
class RowBlocks {
 public:
  // scale, zero: where they begin in the matrix.
  __device__ RowBlocks(const Stage<form>& stage, int row, uint32_t scale, uint32_t zero, bool zero_points)
      : scales_(stage.scales[row]), zeros_(form == MatrixForm::kBlocks4 ? 0x88 : 0x80), first_(scale % 2) {
    if (zero_points) zeros_ = stage.zeros[row] >> zero % 4 * 8;
  }
  // Of a block, counted from the first of the stage's.
  __device__ float scale(int block) const { return load_float(scales_, type, first_ + block); }
  __device__ Codes<type, form> codes(int block) const { return Codes<type, form>(zeros_ >> 4 * block); }

 private:
  const uint32_t* scales_;
  uint32_t zeros_;  // a byte, two blocks' in 4 bit
  int first_;       // of the stage's scales
};

}  // namespace qwen2vl::cuda
