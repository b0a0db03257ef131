#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "cuda/block_team.cuh"
#include "cuda/launch.cuh"
#include "cuda/words.cuh"
#include "linear/few_rows.h"

// What the kernels for few rows share.
namespace qwen2vl::cuda {

constexpr int kWarp = 32;
constexpr int kWide = 8;                 // numbers that a thread loads at once
constexpr int kStagedBytes = 40 * 1024;  // of normalised input that a block keeps
constexpr int kTogether = 4;             // rows that share a pass over the weights

// --- eight numbers ---------------------------------------------------------------------------------------

struct alignas(16) Vector {
  uint32_t words[4];
};

// Eight numbers as they lie in memory, so that many can be under way before the first is needed.
template <FloatType type>
struct Eight {
  Vector vectors[type == FloatType::kFloat32 ? 2 : 1];

  __device__ static Eight load(const void* data, int64_t at) {  // at: a multiple of 8
    return static_cast<const Eight*>(data)[at / kWide];
  }
  __device__ float operator[](int i) const {
    constexpr int kEach = type == FloatType::kFloat32 ? 4 : 8;
    return number_of<type>(vectors[i / kEach].words, i % kEach);
  }
};

// --- the input -------------------------------------------------------------------------------------------

// Normalised rows [rows, K] of the step's type in shared memory; all threads of the block get there.
template <FloatType type, int rows>
__device__ void stage(const BlockTeam& team, const LinearStep& step, int64_t first_row, char* staged) {
  const int64_t inputs = step.inputs;
  for (int b = 0; b < rows; ++b) {
    const int64_t row = first_row + b < step.rows ? first_row + b : step.rows - 1;
    float squares = 0;
    for (int64_t k = team.rank(); k < inputs; k += team.size()) {
      const float x = load_float(step.x, type, row * inputs + k);
      squares = fmaf(x, x, squares);
    }
    squares = team.reduce(squares, [](float a, float b) { return a + b; });
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(inputs) + step.epsilon);
    for (int64_t k = team.rank(); k < inputs; k += team.size()) {
      const float x = load_float(step.x, type, row * inputs + k);
      store_float(staged, type, b * inputs + k, x * scale * load_float(step.norm, type, k));
    }
  }
  team.sync();
}

// Where row b of a pass begins in the input, staged or as it lies; beyond the last row the last.
template <bool normed>
__device__ int64_t input_row(const LinearStep& step, int64_t first_row, int b) {
  if (normed) return b * step.inputs;
  return (first_row + b < step.rows ? first_row + b : step.rows - 1) * step.inputs;
}

// Tiles (or units) of the matrices, counted through: where those of the first two end, and all.
struct Tiles {
  int64_t first, second, all;
};

// The matrix of a tile, and the tile's number among that matrix' own.
__device__ inline int32_t matrix_of(Tiles tiles, int64_t* tile) {
  const int32_t m = (*tile >= tiles.first ? 1 : 0) + (*tile >= tiles.second ? 1 : 0);
  *tile -= m == 0 ? 0 : m == 1 ? tiles.first : tiles.second;
  return m;
}

// Of a gated step the first matrix' stand for both.
inline Tiles count_through(const LinearStep& step, int64_t (*of)(const LinearStep&, int32_t)) {
  const int32_t matrices = step.gated ? 1 : step.matrices;
  Tiles tiles{};
  tiles.first = of(step, 0);
  tiles.second = tiles.first + (matrices > 1 ? of(step, 1) : 0);
  tiles.all = tiles.second + (matrices > 2 ? of(step, 2) : 0);
  return tiles;
}

// Whether a normalised row fits a block's shared memory, or none is normalised.
inline bool stages(const LinearStep& step) {
  return step.norm == nullptr || step.inputs * float_size(step.type) <= kStagedBytes;
}

// Rows side by side, where their normalised input fits a block's shared memory; float32, which is for
// checking and not for speed, takes one after the other. pass(rows, first_row) launches one pass, `rows` a
// constant.
template <FloatType type, typename Pass>
void for_rows(const LinearStep& step, Pass pass) {
  constexpr int kMost = type == FloatType::kFloat32 ? 1 : kTogether;
  const bool fit = step.norm == nullptr || kMost * step.inputs * float_size(type) <= kStagedBytes;
  for (int64_t row = 0; row < step.rows;) {
    const bool together = step.rows - row > 1 && fit;
    together ? pass(std::integral_constant<int, kMost>(), row) : pass(std::integral_constant<int, 1>(), row);
    row += together ? kMost : 1;
  }
}

// call(type) with the step's number format as a constant.
template <typename Call>
void for_type(const LinearStep& step, Call call) {
  switch (step.type) {
    case FloatType::kFloat32:
      return call(std::integral_constant<FloatType, FloatType::kFloat32>());
    case FloatType::kBFloat16:
      return call(std::integral_constant<FloatType, FloatType::kBFloat16>());
    case FloatType::kFloat16:
      return call(std::integral_constant<FloatType, FloatType::kFloat16>());
  }
}

}  // namespace qwen2vl::cuda
