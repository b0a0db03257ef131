#pragma once

#include <cuda_runtime.h>

#include "cuda/words.cuh"
#include "linear/weight_stages.cuh"

// A step's input in a block's shared memory, normalised, in the order in which tensor cores meet it.
namespace qwen2vl::cuda {

constexpr int kGroupInputs = 32;  // whose order is their own: a lane takes 16 bytes of each group

// From one row to the next: those of two rows, 64 bytes each, are in different places of 128.
inline int64_t staged_row_bytes(int64_t padded_inputs) {
  const int64_t bytes = padded_inputs * 2;
  return bytes % 128 == 0 ? bytes + 64 : bytes;
}

// Eight numbers, two a word, as they lie in memory.
template <FloatType type>
struct Eight {
  Vector vector;
  __device__ static Eight load(const void* data, int64_t at) {  // at: a multiple of 8
    return {static_cast<const Vector*>(data)[at / 8]};
  }
  __device__ float operator[](int i) const { return number_of<type>(vector.words, i); }
};

// Stores the eight numbers with number `eighth` of a row where lane t of each four finds its own: of a group
// the words that stand across from those that it has of the weights, a chunk after the other.
template <MatrixForm form>
__device__ void store_eighth(Vector eight, int eighth, uint32_t* row) {
  uint32_t* const group = row + eighth / 4 * (kGroupInputs / 2);
  const int part = eighth % 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t* const words = eight.words;
    if constexpr (form == MatrixForm::kPlain) {  // chunk `part`, of which lane i has word i
      group[4 * i + part] = words[i];
    } else if constexpr (form == MatrixForm::kBlocks8) {  // a chunk's half, two words a lane
      group[4 * (part % 2 * 2 + i / 2) + part / 2 * 2 + i % 2] = words[i];
    } else {  // lane `part`'s, unpacked in pairs of codes i and i + 4
      group[4 * part + i] = __byte_perm(words[i / 2], words[i / 2 + 2], i % 2 == 0 ? 0x5410 : 0x7632);
    }
  }
}

// Rows [first_row, first_row + rows) of the input, each with zeros behind up to `padded` inputs; all threads
// of the block come here, and go on when all is there. scratch: [rows * warps].
template <FloatType type, MatrixForm form>
__device__ void stage_input(const LinearStep& step, int64_t first_row, int rows, int padded, char* staged,
                            int64_t row_bytes, float* scratch) {
  constexpr int kAtOnce = 5;  // that a thread has under way
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int warps = threads / kWarp, inputs = static_cast<int>(step.inputs);
  if (step.norm != nullptr) {
    for (int b = 0; b < rows; ++b) {
      float sum = 0;
#pragma unroll 4
      for (int k = thread * 8; k < inputs; k += threads * 8) {
        const auto x = Eight<type>::load(step.x, (first_row + b) * inputs + k);
        for (int i = 0; i < 8; ++i) sum = fmaf(x[i], x[i], sum);
      }
      for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += shuffled(sum, distance);
      if (thread % kWarp == 0) scratch[b * warps + thread / kWarp] = sum;
    }
    __syncthreads();
    if (thread < rows) {  // each row's 1 / rms takes the place of its first sum
      float* const sums = scratch + thread * warps;
      for (int i = 1; i < warps; ++i) sums[0] += sums[i];
      sums[0] = 1.0f / sqrtf(sums[0] / static_cast<float>(inputs) + step.epsilon);
    }
    __syncthreads();
  }
  const int eighths = padded / 8, all = rows * eighths;
  const auto row_of = [&](int index) { return rows == 1 ? 0 : index / eighths; };
  for (int first = thread; first < all; first += kAtOnce * threads) {
    Eight<type> x[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int index = first + i * threads, row = row_of(index), at = (index - row * eighths) * 8;
      const bool is_input = index < all && at < inputs;
      x[i] = is_input ? Eight<type>::load(step.x, (first_row + row) * inputs + at) : Eight<type>{};
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int index = first + i * threads, row = row_of(index), eighth = index - row * eighths;
      if (index >= all) break;
      if (step.norm != nullptr && eighth * 8 < inputs) {
        const float scale = scratch[row * warps];
        const auto norm = Eight<type>::load(step.norm, eighth * 8);
        Eight<type> normalized;
        for (int k = 0; k < 8; ++k) store_float(normalized.vector.words, type, k, x[i][k] * scale * norm[k]);
        x[i] = normalized;
      }
      store_eighth<form>(x[i].vector, eighth, reinterpret_cast<uint32_t*>(staged + row * row_bytes));
    }
  }
  __syncthreads();
}

}  // namespace qwen2vl::cuda
