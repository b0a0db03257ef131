#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "cuda/block_team.cuh"
#include "cuda/launch.cuh"
#include "cuda/words.cuh"
#include "linear/few_rows.h"

// Speed is the memory's: a warp (or several, where outputs are few) takes two outputs' weights, row by row,
// and has the next ones under way while it multiplies; the first before the input is there.
namespace qwen2vl::cuda {

namespace {

constexpr int kWarp = 32, kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kWide = 8;                 // numbers that a thread loads at once
constexpr int kStagedBytes = 40 * 1024;  // of normalised input that a block keeps
constexpr int kTogether = 4;             // rows that share a pass over the weights

// --- weights ---------------------------------------------------------------------------------------------

struct alignas(16) Vector {
  uint32_t words[4];
};

// Eight numbers as they lie in memory.
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

// One output's weights [K]. A piece is what a lane takes at once, as it lies in memory: nothing is computed
// with it before it is needed, so that several can be under way.
template <FloatType type, MatrixForm form>
struct OutputRow {
  struct Piece {
    static constexpr int kInputs = kWide;
    Eight<type> numbers;
    __device__ float operator[](int i) const { return numbers[i]; }
    __device__ float zero(int, int) const { return 0; }
    __device__ float scale() const { return 1; }
  };
  const Eight<type>* weights;

  __device__ OutputRow(const LinearStep& step, const DeviceMatrix& matrix, int64_t n, int)
      : weights(static_cast<const Eight<type>*>(matrix.weights) + n * (step.inputs / kWide)) {}
  __device__ Piece load(int piece) const { return {weights[piece]}; }
};

// A small whole number in the last bits of 2^23: a subtraction makes a float of a code less its zero point.
constexpr uint32_t kWhole = 0x4B000000u;

// Byte i of four as such a number.
__device__ inline float whole_byte(uint32_t bytes, int i) {
  return float_from_bits(__byte_perm(bytes, kWhole, 0x7440u | i));
}

struct alignas(8) FourBits {
  static constexpr int kBits = 4;
  uint32_t words[2];
  __device__ float whole(int i) const {  // four codes become bytes at once: every other one of a word
    return whole_byte(words[i / 8] >> i % 2 * 4 & 0x0F0F0F0Fu, i % 8 / 2);
  }
};
struct EightBits {
  static constexpr int kBits = 8;
  Vector vector;
  __device__ float whole(int i) const { return whole_byte(vector.words[i / 4], i % 4); }
};

// In blocks of 16 << shift inputs.
template <FloatType type, typename Codes>
struct CodesRow {
  using Scale = std::conditional_t<type == FloatType::kFloat32, float, uint16_t>;
  struct Piece {
    static constexpr int kInputs = 16;
    Codes codes;
    Scale step_size;
    uint8_t zeros;  // the block's zero point, of 4 bits beside its neighbour's
    __device__ float operator[](int i) const { return codes.whole(i); }
    // Of the piece with this number.
    __device__ float zero(int number, int shift) const {
      const uint32_t zero = Codes::kBits == 4 ? zeros >> (number >> shift) % 2 * 4 & 15 : zeros;
      return float_from_bits(zero | kWhole);
    }
    __device__ float scale() const { return load_float(&step_size, type, 0); }
  };
  const Codes* codes;
  const uint8_t* zero_points;
  const Scale* scales;
  uint8_t all_zeros;  // where there are no zero points, of every block
  int shift;

  __device__ CodesRow(const LinearStep& step, const DeviceMatrix& matrix, int64_t n, int shift)
      : all_zeros(matrix.zero_points != nullptr ? 0
                  : Codes::kBits == 4           ? 0x88
                                                : 128),
        shift(shift) {
    const int64_t pieces = step.inputs / Piece::kInputs, blocks = (pieces + (1 << shift) - 1) >> shift;
    codes = static_cast<const Codes*>(matrix.weights) + (n * blocks << shift);
    scales = static_cast<const Scale*>(matrix.scales) + n * blocks;
    zero_points = matrix.zero_points + n * (Codes::kBits == 4 ? (blocks + 1) / 2 : blocks);
  }
  __device__ Piece load(int piece) const {
    const int block = piece >> shift;
    const uint8_t zeros = all_zeros != 0 ? all_zeros : zero_points[Codes::kBits == 4 ? block / 2 : block];
    return {codes[piece], scales[block], zeros};
  }
};
template <FloatType type>
struct OutputRow<type, MatrixForm::kBlocks4> : CodesRow<type, FourBits> {
  using CodesRow<type, FourBits>::CodesRow;
};
template <FloatType type>
struct OutputRow<type, MatrixForm::kBlocks8> : CodesRow<type, EightBits> {
  using CodesRow<type, EightBits>::CodesRow;
};

// --- units: pairs of outputs, or single ones of a gated step, counted through the matrices ---------------

// Where the first two matrices' units end, and all.
struct Units {
  int64_t first, second, all;
};

// Of a gated step the first matrix' stand for both.
Units count_units(const LinearStep& step) {
  const int32_t matrices = step.gated ? 1 : step.matrices;
  Units units{};
  units.first = output_units(step, 0);
  units.second = units.first + (matrices > 1 ? output_units(step, 1) : 0);
  units.all = units.second + (matrices > 2 ? output_units(step, 2) : 0);
  return units;
}

// A unit: its matrix, and the outputs that finish_pair takes.
struct Unit {
  int32_t m;
  OutputPair pair;

  __device__ Unit(const LinearStep& step, Units units, int64_t number) {
    number = number < units.all ? number : units.all - 1;
    m = step.gated ? 0 : (number >= units.first ? 1 : 0) + (number >= units.second ? 1 : 0);
    number -= m == 0 ? 0 : m == 1 ? units.first : units.second;
    pair = step.gated ? OutputPair{number, number} : output_pair(step, m, number);
  }
};

template <FloatType type, MatrixForm form>
struct UnitRows {
  OutputRow<type, form> first, second;

  __device__ UnitRows(const LinearStep& step, const Unit& unit, int shift)
      : first(step, step.matrix[unit.m], unit.pair.first, shift),
        second(step, step.matrix[step.gated ? 1 : unit.m],
               unit.pair.second < step.matrix[unit.m].outputs ? unit.pair.second : unit.pair.first, shift) {}
};

// --- the input -------------------------------------------------------------------------------------------

// Normalised rows [rows, K] of the step's type in shared memory; all threads of the block get there.
template <FloatType type, int rows>
__device__ void stage(const BlockTeam& team, const LinearStep& step, int64_t first_row, char* staged) {
  const int64_t inputs = step.inputs, stride = int64_t{team.size()} * kWide;
  for (int b = 0; b < rows; ++b) {
    const int64_t row = first_row + b < step.rows ? first_row + b : step.rows - 1;
    float squares = 0;
    for (int64_t k = int64_t{team.rank()} * kWide; k < inputs; k += stride) {
      const auto x = Eight<type>::load(step.x, row * inputs + k);
      for (int i = 0; i < kWide; ++i) squares = fmaf(x[i], x[i], squares);
    }
    squares = team.reduce(squares, [](float a, float b) { return a + b; });
    const float scale = 1.0f / sqrtf(squares / static_cast<float>(inputs) + step.epsilon);
    for (int64_t k = int64_t{team.rank()} * kWide; k < inputs; k += stride) {
      const auto x = Eight<type>::load(step.x, row * inputs + k), norm = Eight<type>::load(step.norm, k);
      for (int i = 0; i < kWide; ++i) store_float(staged, type, b * inputs + k + i, x[i] * scale * norm[i]);
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

// --- the kernel ------------------------------------------------------------------------------------------

// 1 << slices: warps that share a unit's inputs. shift: of blocks.
template <FloatType type, MatrixForm form, int rows, bool normed>
__global__ void __launch_bounds__(kThreads, 2)
    few_rows_kernel(LinearStep step, int64_t first_row, Units units, int slices, int shift) {
  using Row = OutputRow<type, form>;
  using Piece = typename Row::Piece;
  // Pieces under way, of each output: what the registers hold.
  constexpr int kAhead = form == MatrixForm::kPlain ? 2 : rows > 1 ? 1 : form == MatrixForm::kBlocks4 ? 3 : 2;
  __shared__ BlockTeam::Slot reduction[32];
  __shared__ Vector staged[normed ? kStagedBytes / sizeof(Vector) : 1];
  __shared__ float partial[kWarps][2][rows];

  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int unit_of_block = warp >> slices, slice = warp & ((1 << slices) - 1);
  const int64_t stride = int64_t{gridDim.x} * (kWarps >> slices);
  const int pieces = static_cast<int>(step.inputs / Piece::kInputs), together = kWarp << slices;

  struct Batch {
    Piece first[kAhead], second[kAhead];
  };
  const auto load = [&](const UnitRows<type, form>& from, int begin) {
    Batch batch;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {  // beyond the last the last, which nobody looks at
      const int piece = min(begin + i * together + slice * kWarp + lane, pieces - 1);
      batch.first[i] = from.first.load(piece);
      batch.second[i] = from.second.load(piece);
    }
    return batch;
  };

  // The same for all threads of a block: the number of its first unit, and the first piece of the batch.
  int64_t first_unit = int64_t{blockIdx.x} * (kWarps >> slices);
  int begin = 0;
  Unit unit(step, units, first_unit + unit_of_block);
  UnitRows<type, form> weights(step, unit, shift);
  Batch batch = load(weights, 0);
  let_the_next_start();
  if (normed && threadIdx.x * 128 < step.inputs * float_size(type)) {
    prefetch(static_cast<const char*>(step.norm) + threadIdx.x * 128);
  }
  wait_for_kernels_before();
  if (normed) stage<type, rows>(BlockTeam{reduction}, step, first_row, reinterpret_cast<char*>(staged));
  const void* const input = normed ? static_cast<const void*>(staged) : step.x;

  float sum[2][rows] = {};
  while (first_unit < units.all) {
    const bool last = begin + kAhead * together >= pieces;
    const int64_t next_unit = last ? first_unit + stride : first_unit;
    const int next_begin = last ? 0 : begin + kAhead * together;
    const Unit current = unit;
    Batch next = batch;
    if (next_unit < units.all) {
      if (last) {
        unit = Unit(step, units, next_unit + unit_of_block);
        weights = UnitRows<type, form>(step, unit, shift);
      }
      next = load(weights, next_begin);
    }

#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int piece = begin + i * together + slice * kWarp + lane;
      if (piece >= pieces) continue;
      const float zero[2] = {batch.first[i].zero(piece, shift), batch.second[i].zero(piece, shift)};
      const float scale[2] = {batch.first[i].scale(), batch.second[i].scale()};
#pragma unroll
      for (int b = 0; b < rows; ++b) {
        const int64_t at = input_row<normed>(step, first_row, b) + int64_t{piece} * Piece::kInputs;
        float part[2] = {0, 0};
#pragma unroll
        for (int j = 0; j < Piece::kInputs; j += kWide) {
          const auto x = Eight<type>::load(input, at + j);
#pragma unroll
          for (int k = 0; k < kWide; ++k) {
            part[0] = fmaf(x[k], batch.first[i][j + k] - zero[0], part[0]);
            part[1] = fmaf(x[k], batch.second[i][j + k] - zero[1], part[1]);
          }
        }
        sum[0][b] = fmaf(part[0], scale[0], sum[0][b]);
        sum[1][b] = fmaf(part[1], scale[1], sum[1][b]);
      }
    }

    if (last) {
      float total[2] = {0, 0};  // lane b has row b's
#pragma unroll
      for (int b = 0; b < rows; ++b) {
        for (int o = 0; o < 2; ++o) {
          for (int distance = kWarp / 2; distance > 0; distance /= 2)
            sum[o][b] += shuffled(sum[o][b], distance);
          if (lane == b) total[o] = sum[o][b];
          sum[o][b] = 0;
        }
      }
      if (slices > 0) {
        if (lane < rows) {
          partial[warp][0][lane] = total[0];
          partial[warp][1][lane] = total[1];
        }
        __syncthreads();
        if (slice == 0 && lane < rows) {
          for (int other = 1; other < 1 << slices; ++other) {
            total[0] += partial[warp + other][0][lane];
            total[1] += partial[warp + other][1][lane];
          }
        }
        __syncthreads();
      }
      const bool own = slice == 0 && first_unit + unit_of_block < units.all;
      if (own && lane < rows && first_row + lane < step.rows) {
        finish_pair(step, current.m, first_row + lane, current.pair, total[0], total[1]);
      }
    }
    first_unit = next_unit;
    begin = next_begin;
    batch = next;
  }
}

// --- launches --------------------------------------------------------------------------------------------

int64_t rounded_up(int64_t count, int64_t whole) { return (count + whole - 1) / whole; }  // in wholes

// Warps for a unit, as a power of two: as many as let the GPU's `resident` blocks be done soonest, counted in
// a lane's pieces.
int slices_of(const Units& units, int64_t pieces, int64_t resident) {
  const auto cost = [&](int slices) {
    const int64_t blocks = rounded_up(units.all << slices, kWarps);
    return rounded_up(blocks, resident) * rounded_up(pieces, kWarp << slices);
  };
  int best = 0;
  for (int slices = 1; 1 << slices <= kWarps; ++slices) {
    if (cost(slices) < cost(best)) best = slices;
  }
  return best;
}

template <FloatType type, MatrixForm form, int rows, bool normed>
void launch_pass(const LinearStep& step, int64_t first_row, StreamHandle stream) {
  const auto kernel = few_rows_kernel<type, form, rows, normed>;
  const Units units = count_units(step);
  int blocks_each = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, kernel, kThreads, 0), "a layer");
  const int64_t resident = int64_t{capabilities().multiprocessors} * std::max(blocks_each, 1);
  const int slices = slices_of(units, step.inputs / OutputRow<type, form>::Piece::kInputs, resident);
  // More than the GPU takes at once would only normalise the input again.
  const auto blocks = static_cast<unsigned>(std::min(rounded_up(units.all << slices, kWarps), resident));
  int shift = 0;
  while (16 << shift < step.block) ++shift;
  launch(step.early != 0 ? Start::kEarly : Start::kInTurn, kernel, blocks, kThreads, stream, "a layer", step,
         first_row, units, slices, shift);
}

template <FloatType type, MatrixForm form, int rows>
void launch_pass(const LinearStep& step, int64_t first_row, StreamHandle stream) {
  step.norm != nullptr ? launch_pass<type, form, rows, true>(step, first_row, stream)
                       : launch_pass<type, form, rows, false>(step, first_row, stream);
}

// Rows side by side, where their normalised input fits a block's shared memory; float32, which is for
// checking and not for speed, takes one after the other.
template <FloatType type, MatrixForm form>
void launch_rows(const LinearStep& step, StreamHandle stream) {
  constexpr int kMost = type == FloatType::kFloat32 ? 1 : kTogether;
  const bool fit = step.norm == nullptr || kMost * step.inputs * float_size(type) <= kStagedBytes;
  for (int64_t row = 0; row < step.rows;) {
    const bool together = step.rows - row > 1 && fit;
    together ? launch_pass<type, form, kMost>(step, row, stream)
             : launch_pass<type, form, 1>(step, row, stream);
    row += together ? kMost : 1;
  }
}

template <FloatType type>
void launch_form(const LinearStep& step, StreamHandle stream) {
  switch (step.form) {
    case MatrixForm::kPlain:
      return launch_rows<type, MatrixForm::kPlain>(step, stream);
    case MatrixForm::kBlocks4:
      return launch_rows<type, MatrixForm::kBlocks4>(step, stream);
    case MatrixForm::kBlocks8:
      return launch_rows<type, MatrixForm::kBlocks8>(step, stream);
  }
}

bool fits(const LinearStep& step) {
  const bool plain = step.form == MatrixForm::kPlain;
  if (step.inputs % (plain ? kWide : 16) != 0) return false;
  if (!plain && (step.block < 16 || (step.block & (step.block - 1)) != 0)) return false;
  return step.norm == nullptr || step.inputs * float_size(step.type) <= kStagedBytes;
}

}  // namespace

bool few_rows(const LinearStep& step, StreamHandle stream) {
  if (!fits(step)) return false;
  switch (step.type) {
    case FloatType::kFloat32:
      launch_form<FloatType::kFloat32>(step, stream);
      break;
    case FloatType::kBFloat16:
      launch_form<FloatType::kBFloat16>(step, stream);
      break;
    case FloatType::kFloat16:
      launch_form<FloatType::kFloat16>(step, stream);
      break;
  }
  return true;
}

}  // namespace qwen2vl::cuda
