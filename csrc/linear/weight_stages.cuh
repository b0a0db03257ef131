#pragma once

#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include "common/scale_block.h"
#include "cuda/vector.cuh"
#include "linear/device_linear.h"

// A matrix' weights on their way to tensor cores: stage by stage into shared memory, each warp its own.
namespace qwen2vl::cuda {

constexpr int kTileRows = 16;  // a tile, what tensor cores take at once: so many outputs' weights
constexpr int kTileUnits = kTileRows / 2;
constexpr int kStageChunks = 8;  // a stage: so many chunks of 16 bytes of each row

// Inputs whose weights are a chunk.
template <MatrixForm form>
constexpr int kChunkInputs = form == MatrixForm::kPlain     ? 8
                             : form == MatrixForm::kBlocks4 ? 32
                                                            : 16;
template <MatrixForm form>
constexpr int kStageInputs = kStageChunks * kChunkInputs<form>;

// How a step's matrices, all alike, are cut into tiles and stages.
struct Tiling {
  int32_t first, second, all;  // tiles: where those of the first two matrices end, and of all
  int32_t chunks;              // of an output
  int32_t stages;              // of a tile
  int32_t blocks;              // of an output
  int32_t zero_points;         // there are some
  int64_t row_bytes;           // of an output's weights
};

// Sixteen outputs, counted through the matrices: eight and eight that finish_pair takes in pairs. Of a gated
// step the second eight are the second matrix'. (A matrix has a multiple of eight outputs.)
struct Tile {
  int32_t m;
  int32_t first, second;  // outputs that the eights begin with; the second may be beyond the last

  __device__ Tile(const LinearStep& step, const Tiling& tiling, int number) {
    number = min(number, tiling.all - 1);
    m = step.gated ? 0 : (number >= tiling.first ? 1 : 0) + (number >= tiling.second ? 1 : 0);
    number -= m == 0 ? 0 : m == 1 ? tiling.first : tiling.second;
    first = second = kTileUnits * number;
    if (m < step.rotated) {
      const OutputPair pair = output_pair(step, m, first);
      first = static_cast<int32_t>(pair.first);
      second = static_cast<int32_t>(pair.second);
    } else if (!step.gated) {
      first *= 2;
      second = first + kTileUnits;
    }
  }
};

// Eight rows of a tile: outputs of a matrix, others in the place of those beyond the last.
struct TileRows {
  const DeviceMatrix& matrix;
  int32_t begin;

  __device__ TileRows(const LinearStep& step, const Tile& tile, bool second)
      : matrix(step.matrix[second && step.gated ? 1 : tile.m]),
        begin(second && tile.second < matrix.outputs ? tile.second : tile.first) {}
};

// Where a row's chunk lies in a stage: eight rows' chunks of one number are in eight different places of 128
// bytes, so that they are read at once.
__device__ inline int chunk_place(int row, int chunk) { return chunk ^ row % kStageChunks; }

// A stage has whole blocks, two or one, and so a byte of each row's zero points. They begin somewhere among
// the words that hold them: block b of row n is number n * blocks + b of its matrix.
template <MatrixForm form>
constexpr int kStageBlocks = kStageInputs<form> / kScaleBlock;
template <MatrixForm form>
__device__ uint32_t zero_bytes(const Tiling& tiling) {  // of a row
  return form == MatrixForm::kBlocks4 ? (tiling.blocks + 1) / 2 : tiling.blocks;
}

// What a stage holds of a tile.
template <MatrixForm form>
struct alignas(64) Stage {
  Vector weights[kTileRows][kStageChunks];
  uint32_t scales[kTileRows][kStageBlocks<form>];
  uint32_t zeros[kTileRows];
};
template <>
struct alignas(64) Stage<MatrixForm::kPlain> {
  Vector weights[kTileRows][kStageChunks];
};

// What a lane copies of a tile, from one of the warp's stages to the next: a chunk of four rows, and words of
// one row's scales and zero points.
template <MatrixForm form>
struct StageSource {
  static constexpr int kRowsAtOnce = kWarp / kStageChunks;

  const char* weights[2];  // the next stage's chunk of a row of each eight
  const char *scales, *zeros;
  int stage;

  __device__ StageSource(const LinearStep& step, const Tiling& tiling, const Tile& tile, int stage, int lane)
      : stage(stage) {
    for (int i = 0; i < 2; ++i) {
      const TileRows rows(step, tile, i > 0);
      weights[i] = static_cast<const char*>(rows.matrix.weights) +
                   (rows.begin + lane / kStageChunks) * tiling.row_bytes +
                   (stage * kStageChunks + lane % kStageChunks) * sizeof(Vector);
    }
    if constexpr (form != MatrixForm::kPlain) {
      const TileRows rows(step, tile, lane / kTileUnits % 2 > 0);
      const int64_t n = rows.begin + lane % kTileUnits;
      scales =
          static_cast<const char*>(rows.matrix.scales) + (n * tiling.blocks + stage * kStageBlocks<form>)*2;
      zeros = reinterpret_cast<const char*>(rows.matrix.zero_points) + n * zero_bytes<form>(tiling) + stage;
    }
  }

  // Begins the copy of the stage, which __pipeline_wait_prior() waits for, and goes on to the one `step`
  // behind.
  __device__ void copy(const Tiling& tiling, Stage<form>* to, int lane, int step) {
    const int chunk = lane % kStageChunks;
    const bool is_chunk = stage * kStageChunks + chunk < tiling.chunks;
#pragma unroll
    for (int i = 0; i < kTileRows / kRowsAtOnce; ++i) {
      const int row = lane / kStageChunks + i * kRowsAtOnce;
      Vector* const place = &to->weights[row][chunk_place(row, chunk)];
      if (is_chunk) {
        const char* const from = weights[i / 2] + i % 2 * kRowsAtOnce * tiling.row_bytes;
        __pipeline_memcpy_async(place, from, sizeof(Vector));
      } else {
        *place = {};
      }
    }
    for (const char*& rows : weights) rows += step * (kStageChunks * sizeof(Vector));
    if constexpr (form != MatrixForm::kPlain) {
      const int row = lane % kTileRows, word = lane / kTileRows;
      if (word < kStageBlocks<form>) {
        // The words that the first and the second block's scale are in: the same, or the next. Of a block
        // that is not there, whose weights are zeros, the one before it.
        const bool is_block = stage * kStageBlocks<form> + word < tiling.blocks;
        __pipeline_memcpy_async(&to->scales[row][word], whole_word(is_block ? scales + word * 2 : scales),
                                sizeof(uint32_t));
      }
      if (tiling.zero_points != 0 && word == 0) {
        __pipeline_memcpy_async(&to->zeros[row], whole_word(zeros), sizeof(uint32_t));
      }
      scales += step * (kStageBlocks<form> * 2);
      zeros += step;
    }
    stage += step;
  }

 private:
  // Where the word begins that an address is in.
  __device__ static const char* whole_word(const char* address) {
    return address - reinterpret_cast<uintptr_t>(address) % sizeof(uint32_t);
  }
};

}  // namespace qwen2vl::cuda
