#include <cuda_runtime.h>

#include <algorithm>

#include "common/ceil_divide.h"
#include "cuda/launch.cuh"
#include "linear/few_rows.h"
#include "linear/staged_input.cuh"
#include "linear/tile_weights.cuh"
#include "linear/weight_stages.cuh"

// Speed is the memory's: each warp has the weights of the next stages under way while tensor cores multiply
// one, the first of them before the input is there.
namespace qwen2vl::cuda {

namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarp;
constexpr int kTogether = 8;    // rows that share a pass over the weights: tensor cores' columns
constexpr int kBlocksEach = 2;  // of a multiprocessor, at most: where registers and memory are left, the
                                // next kernel's start there, too

// Blocks that registers are left for: the next kernel's one beside two, but for codes, whose unpacking would
// spill them.
template <MatrixForm form>
constexpr int kRegisterBlocks = form == MatrixForm::kPlain ? kBlocksEach + 1 : kBlocksEach;

// A block's shared memory. ring: stages of a warp, under way or being multiplied.
template <MatrixForm form, int ring_stages>
struct Shared {
  Stage<form> ring[kWarps][ring_stages];
  FourFloats partial[kWarps][kWarp];  // sums of warps that share a tile
  // The staged input follows.
};

// Where the scales and zero points of a lane's rows, g and g + 8, begin in their matrix: see
// weight_stages.cuh.
struct RowStarts {
  uint32_t scale[2], zero[2];
};

// Stage `number` of a tile times the input: sums of rows g and g + 8, columns 2 t and 2 t + 1, with
// lane = 4 g + t. x: the stage's first group in the input's row g, from lane t's part on.
template <FloatType type, MatrixForm form>
__device__ void multiply_stage(const Stage<form>& stage, const Tiling& tiling, int number, const Vector* x,
                               int lane, const RowStarts& starts, float (&sums)[4]) {
  constexpr int kGroup = kGroupInputs / 8;  // vectors
  const int row = lane % kTileRows, chunk = lane / kTileRows;
  uint32_t words[kStageChunks / 2][4];  // rows g and g + 8 of one chunk, then of the next
#pragma unroll
  for (int i = 0; i < kStageChunks / 2; ++i) {
    load_matrices(words[i], &stage.weights[row][chunk_place(row, 2 * i + chunk)]);
  }
  if constexpr (form == MatrixForm::kPlain) {
#pragma unroll
    for (int i = 0; i < kStageChunks / 2; i += 2) {
      const Vector group = x[i / 2 * kGroup];
      multiply_add<type>(sums, words[i], group.words);
      multiply_add<type>(sums, words[i + 1], group.words + 2);
    }
  } else {
    const auto blocks_of = [&](int i) {
      return RowBlocks<type, form>(stage, lane / 4 + i * kTileUnits,
                                   starts.scale[i] + number * kStageBlocks<form>, starts.zero[i] + number,
                                   tiling.zero_points != 0);
    };
    const RowBlocks<type, form> first = blocks_of(0), second = blocks_of(1);
    constexpr int kChunks = kStageChunks / kStageBlocks<form>;
#pragma unroll
    for (int block = 0; block < kStageBlocks<form>; ++block) {
      const auto first_codes = first.codes(block), second_codes = second.codes(block);
      float products[4] = {};
#pragma unroll
      for (int c = block * kChunks; c < (block + 1) * kChunks; ++c) {
        const uint32_t first_word = words[c / 2][c % 2 * 2], second_word = words[c / 2][c % 2 * 2 + 1];
        const auto multiply = [&](int i, const uint32_t* input) {
          const uint32_t matrix[4] = {first_codes.pair(first_word, i), second_codes.pair(second_word, i),
                                      first_codes.pair(first_word, i + 1),
                                      second_codes.pair(second_word, i + 1)};
          multiply_add<type>(products, matrix, input);
        };
        if constexpr (form == MatrixForm::kBlocks4) {
          const Vector group = x[c * kGroup];
          multiply(0, group.words);
          multiply(2, group.words + 2);
        } else {
          multiply(0, x[c / 2 * kGroup].words + c % 2 * 2);
        }
      }
      const float scale[2] = {first.scale(block), second.scale(block)};
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] = fmaf(products[i], scale[i / 2], sums[i]);
    }
  }
}

// A pair's biases are weights: asked for before the input is there.
template <FloatType type>
__device__ void prefetch_biases(const LinearStep& step, int32_t m, OutputPair pair) {
  const DeviceMatrix& matrix = step.matrix[m];
  const DeviceMatrix& other = step.gated ? step.matrix[1] : matrix;
  if (matrix.bias != nullptr) prefetch(static_cast<const uint16_t*>(matrix.bias) + pair.first);
  if (other.bias != nullptr && pair.second < other.outputs) {
    prefetch(static_cast<const uint16_t*>(other.bias) + pair.second);
  }
}

// rows: from first_row on. 1 << slices: warps that share a tile's stages, by turns: what they read at one
// time lies together.
template <FloatType type, MatrixForm form, int ring_stages>
__global__ void __launch_bounds__(kThreads, kRegisterBlocks<form>)
    few_rows_kernel(LinearStep step, Tiling tiling, int64_t first_row, int rows, int64_t row_bytes,
                    int slices) {
  auto& shared = *static_cast<Shared<form, ring_stages>*>(dynamic_shared_memory());
  char* const staged = reinterpret_cast<char*>(&shared + 1);
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int g = lane / 4, t = lane % 4;
  const int sharers = 1 << slices, slice = warp & (sharers - 1), blocks = static_cast<int>(gridDim.x);
  // Tiles go round the blocks, so that all have as many, or one more.
  const int own_tile = static_cast<int>(blockIdx.x) + (warp >> slices) * blocks;
  const int stride = blocks * (kWarps >> slices);

  // What is copied, and a ring behind it what is multiplied, in the same order.
  int copied_tile = slice < tiling.stages ? own_tile : tiling.all;
  int place = 0;
  StageSource<form> source(step, tiling, Tile(step, tiling, copied_tile), slice, lane);
  const auto copy_next = [&] {
    if (copied_tile < tiling.all) {
      source.copy(tiling, &shared.ring[warp][place], lane, sharers);
      if (source.stage >= tiling.stages) {
        copied_tile += stride;
        if (copied_tile < tiling.all) {
          source = StageSource<form>(step, tiling, Tile(step, tiling, copied_tile), slice, lane);
        }
      }
    }
    __pipeline_commit();
    place = place + 1 == ring_stages ? 0 : place + 1;
  };
#pragma unroll 1
  for (int i = 0; i < ring_stages; ++i) copy_next();
  let_the_next_start();
  const auto pair_of = [&](const Tile& tile) { return OutputPair{tile.first + g, tile.second + g}; };
  if (own_tile < tiling.all) {
    const Tile tile(step, tiling, own_tile);
    prefetch_biases<type>(step, tile.m, pair_of(tile));
  }
  InputStage<type, form> input(step, rows, tiling.stages * kStageInputs<form>);
  wait_for_kernels_before();
  input.store(step, first_row, staged, row_bytes, shared.partial[0][0].numbers);
  // Column g is row g; beyond the last the last, whose sums nobody looks at.
  const auto* const x = reinterpret_cast<const Vector*>(staged + min(g, rows - 1) * row_bytes) + t;

#pragma unroll 1
  for (int round = 0; static_cast<int>(blockIdx.x) + round < tiling.all; round += stride) {
    const bool is_tile = own_tile + round < tiling.all;
    const Tile tile(step, tiling, own_tile + round);
    RowStarts starts{};
    if constexpr (form != MatrixForm::kPlain) {
      for (int i = 0; i < 2; ++i) {
        const uint32_t n = TileRows(step, tile, i > 0).begin + g;
        starts.scale[i] = n * tiling.blocks;
        starts.zero[i] = n * zero_bytes<form>(tiling);
      }
    }
    const OutputPair pair = pair_of(tile);
    const bool finishes = is_tile && slice == 0;
    PairTerms terms{};  // of the first column: nothing is waited for at the end
    if (finishes && 2 * t < rows) terms = pair_terms(step, type, tile.m, first_row + 2 * t, pair);
    FourFloats sums{};
#pragma unroll 1
    for (int stage = slice; is_tile && stage < tiling.stages; stage += sharers) {
      __pipeline_wait_prior(ring_stages - 1);
      __syncwarp();
      multiply_stage<type, form>(shared.ring[warp][place], tiling, stage,
                                 x + stage * (kStageInputs<form> / 8), lane, starts, sums.numbers);
      __syncwarp();
      copy_next();  // to where this stage was
    }
    if (slices > 0) {
      if (slice > 0) shared.partial[warp][lane] = sums;
      __syncthreads();
#pragma unroll 1
      for (int other = 1; slice == 0 && other < sharers; ++other) {
        const FourFloats more = shared.partial[warp + other][lane];
        for (int i = 0; i < 4; ++i) sums.numbers[i] += more.numbers[i];
      }
      const bool another = static_cast<int>(blockIdx.x) + round + stride < tiling.all;
      if (another) __syncthreads();  // before they are written again
    }
    if (finishes && 2 * t < rows) {
      finish_pair(step, type, tile.m, first_row + 2 * t, pair, terms, sums.numbers[0], sums.numbers[2]);
    }
    if (finishes && 2 * t + 1 < rows) {
      finish_pair(step, type, tile.m, first_row + 2 * t + 1, pair, sums.numbers[1], sums.numbers[3]);
    }
  }
}

// --- launches --------------------------------------------------------------------------------------------

template <MatrixForm form>
Tiling tiling_of(const LinearStep& step) {
  // Of a gated step the first matrix' tiles stand for both.
  const int32_t matrices = step.gated ? 1 : step.matrices;
  const auto tiles = [&](int32_t m) {
    return m < matrices ? static_cast<int32_t>(ceil_divide(output_units(step, m), kTileUnits)) : 0;
  };
  Tiling tiling{};
  tiling.first = tiles(0);
  tiling.second = tiling.first + tiles(1);
  tiling.all = tiling.second + tiles(2);
  tiling.chunks = static_cast<int32_t>(ceil_divide(step.inputs, kChunkInputs<form>));
  tiling.stages = static_cast<int32_t>(ceil_divide(tiling.chunks, kStageChunks));
  tiling.row_bytes = step.inputs * 2;
  if (form != MatrixForm::kPlain) {
    tiling.blocks = static_cast<int32_t>(ceil_divide(step.inputs, kScaleBlock));
    tiling.row_bytes = tiling.blocks * kScaleBlock / (form == MatrixForm::kBlocks4 ? 2 : 1);
    tiling.zero_points = step.matrix[0].zero_points != nullptr ? 1 : 0;
  }
  return tiling;
}

// Blocks that take a step's tiles: more than the GPU takes at once would only stage the input again.
int64_t blocks_of(const Tiling& tiling, int of_a_multiprocessor) {
  return std::min<int64_t>(tiling.all, int64_t{capabilities().multiprocessors} * of_a_multiprocessor);
}

// Warps for a tile, as a power of two: as many as let the GPU be done soonest, counted in a warp's stages; a
// tile itself takes about as long as two.
int slices_of(const Tiling& tiling, int of_a_multiprocessor) {
  const auto cost = [&](int slices) {
    const int64_t at_once = blocks_of(tiling, of_a_multiprocessor) * (kWarps >> slices);
    return ceil_divide(tiling.all, at_once) * (ceil_divide(tiling.stages, 1 << slices) + 2);
  };
  int best = 0;
  for (int slices = 1; 1 << slices <= kWarps; ++slices) {
    if (cost(slices) < cost(best)) best = slices;
  }
  return best;
}

// What shared memory allows with a ring of so many stages: bytes for rows, and blocks of a multiprocessor
// that have one row, 0 where there is no room for that.
struct Fit {
  int64_t room;
  int blocks;
};
template <FloatType type, MatrixForm form, int ring_stages>
Fit fit_of(int64_t row_bytes) {
  constexpr int64_t kOthers = sizeof(Shared<form, ring_stages>);
  const int64_t room = capabilities().shared_bytes - kOthers;
  if (room < row_bytes) return {room, 0};
  const Threads threads{kThreads, static_cast<size_t>(kOthers + row_bytes)};
  return {room, std::min(blocks_each(few_rows_kernel<type, form, ring_stages>, threads), kBlocksEach)};
}

// Rows from `first` on, as many at once as `room` for them has.
template <FloatType type, MatrixForm form, int ring_stages>
void launch_rows(const LinearStep& step, const Tiling& tiling, int64_t row_bytes, int64_t room, int slices,
                 StreamHandle stream) {
  const auto kernel = few_rows_kernel<type, form, ring_stages>;
  const int64_t most = std::min<int64_t>(room / row_bytes, kTogether);
  for (int64_t row = 0; row < step.rows; row += most) {
    const auto rows = static_cast<int>(std::min(most, step.rows - row));
    const Threads threads{kThreads, sizeof(Shared<form, ring_stages>) + rows * row_bytes};
    const int64_t blocks = blocks_of(tiling, std::min(blocks_each(kernel, threads), kBlocksEach));
    launch(step.early != 0 ? Start::kEarly : Start::kInTurn, kernel, static_cast<unsigned>(blocks), threads,
           stream, "a layer", step, tiling, row, rows, row_bytes, slices);
  }
}

// Three stages a warp where the rows fit beside them and a multiprocessor takes as many blocks as with two.
template <FloatType type, MatrixForm form>
bool launch_form(const LinearStep& step, StreamHandle stream) {
  const Tiling tiling = tiling_of<form>(step);
  const int64_t row_bytes = staged_row_bytes(int64_t{tiling.stages} * kStageInputs<form>);
  const int64_t rows = std::min<int64_t>(step.rows, kTogether);
  const Fit two = fit_of<type, form, 2>(row_bytes), three = fit_of<type, form, 3>(row_bytes);
  if (two.blocks == 0) return false;
  // The same for any number of rows, whose results then are, too.
  const int slices = slices_of(tiling, two.blocks);
  if (three.room >= rows * row_bytes && three.blocks >= two.blocks) {
    launch_rows<type, form, 3>(step, tiling, row_bytes, three.room, slices, stream);
  } else {
    launch_rows<type, form, 2>(step, tiling, row_bytes, two.room, slices, stream);
  }
  return true;
}

template <FloatType type>
bool launch_type(const LinearStep& step, StreamHandle stream) {
  switch (step.form) {
    case MatrixForm::kPlain:
      return launch_form<type, MatrixForm::kPlain>(step, stream);
    case MatrixForm::kBlocks4:
      return launch_form<type, MatrixForm::kBlocks4>(step, stream);
    case MatrixForm::kBlocks8:
      return launch_form<type, MatrixForm::kBlocks8>(step, stream);
  }
  return false;
}

// Whether outputs come by eights, and what is copied at once lies where it can be.
bool fits(const LinearStep& step) {
  if (step.form != MatrixForm::kPlain && step.block != kScaleBlock) return false;
  if (step.inputs % 8 != 0 || (step.rotated > 0 && step.head_dim % kTileRows != 0)) return false;
  for (int32_t m = 0; m < step.matrices; ++m) {
    const DeviceMatrix& matrix = step.matrix[m];
    if (matrix.outputs % kTileUnits != 0) return false;
    if ((matrix.zero_points != nullptr) != (step.matrix[0].zero_points != nullptr)) return false;
  }
  return true;
}

}  // namespace

bool few_rows(const LinearStep& step, StreamHandle stream) {
  if (!fits(step)) return false;
  switch (step.type) {
    case FloatType::kFloat32:
      return false;
    case FloatType::kBFloat16:
      return launch_type<FloatType::kBFloat16>(step, stream);
    case FloatType::kFloat16:
      return launch_type<FloatType::kFloat16>(step, stream);
  }
  return false;
}

}  // namespace qwen2vl::cuda
