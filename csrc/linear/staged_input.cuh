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
// of the block come here, and go on when all is there. partial: [rows * warps].
template <FloatType type, MatrixForm form>
__device__ void stage_input(const LinearStep& step, int64_t first_row, int rows, int padded, char* staged,
                            int64_t row_bytes, float* partial) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int threads = static_cast<int>(blockDim.x), warps = threads / kWarp;
  const int inputs = static_cast<int>(step.inputs);
  if (step.norm != nullptr) {
    for (int b = 0; b < rows; ++b) {
      float squares = 0;
      for (int k = static_cast<int>(threadIdx.x) * 8; k < inputs; k += threads * 8) {
        const auto x = Eight<type>::load(step.x, (first_row + b) * inputs + k);
        for (int i = 0; i < 8; ++i) squares = fmaf(x[i], x[i], squares);
      }
      for (int distance = kWarp / 2; distance > 0; distance /= 2) squares += shuffled(squares, distance);
      if (lane == 0) partial[b * warps + warp] = squares;
    }
    __syncthreads();
  }
  for (int b = 0; b < rows; ++b) {
    float scale = 0;
    if (step.norm != nullptr) {
      for (int i = 0; i < warps; ++i) scale += partial[b * warps + i];
      scale = 1.0f / sqrtf(scale / static_cast<float>(inputs) + step.epsilon);
    }
    auto* const row = reinterpret_cast<uint32_t*>(staged + b * row_bytes);
    for (int eighth = static_cast<int>(threadIdx.x); eighth < padded / 8; eighth += threads) {
      Eight<type> x{};
      if (eighth * 8 < inputs) {
        x = Eight<type>::load(step.x, (first_row + b) * inputs + eighth * 8);
        if (step.norm != nullptr) {
          const auto norm = Eight<type>::load(step.norm, eighth * 8);
          Eight<type> normalized;
          for (int i = 0; i < 8; ++i) store_float(normalized.vector.words, type, i, x[i] * scale * norm[i]);
          x = normalized;
        }
      }
      store_eighth<form>(x.vector, eighth, row);
    }
  }
  __syncthreads();
}

}  // namespace qwen2vl::cuda
