#include <cuda_runtime.h>

#include <algorithm>

#include "cuda/block_team.cuh"
#include "cuda/gemm.h"
#include "cuda/launch.cuh"
#include "cuda/words.cuh"
#include "linear/device_linear.h"
#include "linear/scratch_layout.h"

namespace qwen2vl::cuda {

namespace {

constexpr int kWarp = 32, kColumnThreads = 512, kRowThreads = 256;
constexpr int kWide = 8;                 // numbers that a thread loads at once
constexpr int kChunk = 2 * kWide;        // inputs of a row that a lane takes at once
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

// --- [K, N]: a thread takes eight neighbouring outputs and every so many-th input
// ---------------------------

// Tiles (or units) of the matrices, counted through: where those of the first two end, and all.
struct Tiles {
  int64_t first, second, all;
};

// The matrix of a tile, and the tile's number among that matrix' own.
__device__ int32_t matrix_of(Tiles tiles, int64_t* tile) {
  const int32_t m = (*tile >= tiles.first ? 1 : 0) + (*tile >= tiles.second ? 1 : 0);
  *tile -= m == 0 ? 0 : m == 1 ? tiles.first : tiles.second;
  return m;
}

// The first of the eight outputs that group g of a tile's `groups` takes. In a rotated matrix half of the
// groups take what the other half is mixed with.
template <int groups>
__device__ int64_t first_output(const LinearStep& step, int32_t m, int64_t tile, int g) {
  if (m >= step.rotated) return (tile * groups + g) * kWide;
  constexpr int kLeft = groups / 2;
  const int64_t half = step.head_dim / 2, left = tile * kLeft * kWide;  // counted over left halves
  return left / half * step.head_dim + left % half + g % kLeft * kWide + (g < kLeft ? 0 : half);
}

// Adds up eight sums over the slices of a warp, and stores them [groups * 8]. Each exchange halves what a
// lane still has to add: it gives its partner one half and takes the other.
template <int groups>
__device__ void store_slices(float* sums, int lane, float* target) {
  int width = kWide, first = 0;
#pragma unroll
  for (int distance = groups; distance < kWarp; distance *= 2) {
    if (width == 1) {
      sums[0] += shuffled(sums[0], distance);
      continue;
    }
    width /= 2;
    const bool upper = (lane & distance) != 0;
    first += upper ? width : 0;
#pragma unroll
    for (int i = 0; i < kWide / 2; ++i) {
      if (i >= width) break;
      const float given = upper ? sums[i] : sums[i + width];
      sums[i] = (upper ? sums[i + width] : sums[i]) + shuffled(given, distance);
    }
  }
  if (lane >= groups * kWide) return;  // these have the same as others
  for (int i = 0; i < width; ++i) target[lane % groups * kWide + first + i] = sums[i];
}

template <FloatType type, int groups, int rows, bool gated, bool normed>
__global__ void __launch_bounds__(kColumnThreads, 1)
    columns_kernel(LinearStep step, int64_t first_row, Tiles tiles) {
  constexpr int kProducts = gated ? 2 : 1, kWidth = groups * kWide, kWarps = kColumnThreads / kWarp;
  constexpr int kSlices = kColumnThreads / groups, kAhead = kProducts * rows > 4 ? 2 : 4;
  __shared__ BlockTeam::Slot reduction[32];
  __shared__ Vector staged[normed ? kStagedBytes / sizeof(Vector) : 1];
  __shared__ float partial[kWarps][kWidth];
  __shared__ float sums[kProducts][kWidth];
  const BlockTeam team{reduction};
  if (normed) stage<type, rows>(team, step, first_row, reinterpret_cast<char*>(staged));
  const void* const input = normed ? static_cast<const void*>(staged) : step.x;

  int64_t tile = blockIdx.x;
  const int32_t m = gated ? 0 : matrix_of(tiles, &tile);
  const int thread = static_cast<int>(threadIdx.x), g = thread % groups, slice = thread / groups;
  const int64_t inputs = step.inputs, outputs = step.matrix[m].outputs;
  const int64_t output = first_output<groups>(step, m, tile, g);

  float sum[kProducts][rows][kWide] = {};
  for (int64_t begin = slice; begin < inputs && output < outputs; begin += kSlices * kAhead) {
    Eight<type> weights[kProducts][kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t k = begin + i * kSlices;
      if (k >= inputs) continue;
      for (int p = 0; p < kProducts; ++p) {
        weights[p][i] = Eight<type>::load(step.matrix[gated ? p : m].weights, k * outputs + output);
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int64_t k = begin + i * kSlices;
      if (k >= inputs) continue;
#pragma unroll
      for (int b = 0; b < rows; ++b) {
        const float x = load_float(input, type, input_row<normed>(step, first_row, b) + k);
#pragma unroll
        for (int p = 0; p < kProducts; ++p) {
#pragma unroll
          for (int j = 0; j < kWide; ++j) sum[p][b][j] = fmaf(x, weights[p][i][j], sum[p][b][j]);
        }
      }
    }
  }

  const int lane = thread % kWarp, warp = thread / kWarp;
#pragma unroll
  for (int b = 0; b < rows; ++b) {
#pragma unroll
    for (int p = 0; p < kProducts; ++p) {
      store_slices<groups>(sum[p][b], lane, partial[warp]);
      __syncthreads();
      if (thread < kWidth) {
        float total = 0;
        for (int i = 0; i < kWarps; ++i) total += partial[i][thread];
        sums[p][thread] = total;
      }
      __syncthreads();
    }
    const int64_t row = first_row + b;
    // Units of the tile: single outputs of a gated step, else pairs.
    const int units = gated ? kWidth : kWidth / 2;
    if (thread < units && row < step.rows) {
      int group = thread / kWide, at = thread % kWide, other = group * kWide + at;
      if (!gated && m >= step.rotated) {
        group = thread / (kWide / 2);
        at = thread % (kWide / 2) * 2;
        other = group * kWide + at + 1;
      } else if (!gated) {
        other = (group + groups / 2) * kWide + at;
      }
      const int64_t first = first_output<groups>(step, m, tile, group) + at;
      const int64_t second = gated ? first : m >= step.rotated ? first + 1 : first + step.head_dim / 2;
      if (first < outputs) {
        finish_pair(step, m, row, {first, second}, sums[0][group * kWide + at],
                    gated ? sums[kProducts - 1][other] : sums[0][other]);
      }
    }
  }
}

// --- rows of K: a warp takes two outputs -----------------------------------------------------------------

// One output's weights [K], and sixteen of them as they lie in memory, so that several can be under way at
// once.
template <FloatType type, MatrixForm form>
struct OutputRow {
  struct Sixteen {
    Eight<type> low, high;
    __device__ float operator[](int i) const { return i < kWide ? low[i] : high[i - kWide]; }
    __device__ float scale() const { return 1; }
  };
  const Sixteen* weights;

  __device__ OutputRow(const LinearStep& step, const DeviceMatrix& matrix, int64_t n, int)
      : weights(static_cast<const Sixteen*>(matrix.weights) + n * (step.inputs / kChunk)) {}
  __device__ Sixteen load(int chunk) const { return weights[chunk]; }
};

struct alignas(8) FourBits {
  static constexpr int kBits = 4;
  uint32_t words[2];
  __device__ uint32_t operator[](int i) const { return words[i / 8] >> (i % 8 * 4) & 15; }
};
struct EightBits {
  static constexpr int kBits = 8;
  Vector vector;
  __device__ uint32_t operator[](int i) const { return vector.words[i / 4] >> (i % 4 * 8) & 255; }
};

// A small whole number in the last bits of 2^23: a subtraction makes a float of a code less its zero point.
constexpr uint32_t kWhole = 0x4B000000u;

// In blocks of 16 << shift inputs.
template <FloatType type, typename Codes>
struct CodesRow {
  struct Sixteen {
    Codes codes;
    float zero, step_size;
    __device__ float operator[](int i) const { return float_from_bits(kWhole | codes[i]) - zero; }
    __device__ float scale() const { return step_size; }
  };
  const Codes* codes;
  const uint8_t* zero_points;  // of the row, or null
  const void* scales;
  int64_t first_scale;
  int shift;

  __device__ CodesRow(const LinearStep& step, const DeviceMatrix& matrix, int64_t n, int shift)
      : zero_points(matrix.zero_points), scales(matrix.scales), shift(shift) {
    const int64_t chunks = step.inputs / kChunk, blocks = (chunks + (1 << shift) - 1) >> shift;
    codes = static_cast<const Codes*>(matrix.weights) + (n * blocks << shift);
    if (zero_points != nullptr) zero_points += n * (Codes::kBits == 4 ? (blocks + 1) / 2 : blocks);
    first_scale = n * blocks;
  }
  __device__ Sixteen load(int chunk) const {
    const int block = chunk >> shift;
    uint32_t zero = 1u << (Codes::kBits - 1);
    if (zero_points != nullptr) {
      zero = Codes::kBits == 4 ? zero_points[block / 2] >> (block % 2 * 4) & 15 : zero_points[block];
    }
    return {codes[chunk], float_from_bits(kWhole | zero), load_float(scales, type, first_scale + block)};
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

template <FloatType type, MatrixForm form, int rows, bool normed>
__global__ void __launch_bounds__(kRowThreads, 2)
    rows_kernel(LinearStep step, int64_t first_row, Tiles units, int shift) {
  using Row = OutputRow<type, form>;
  __shared__ BlockTeam::Slot reduction[32];
  __shared__ Vector staged[normed ? kStagedBytes / sizeof(Vector) : 1];
  if (normed) stage<type, rows>(BlockTeam{reduction}, step, first_row, reinterpret_cast<char*>(staged));
  const void* const input = normed ? static_cast<const void*>(staged) : step.x;

  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  // Loads that are under way at once.
  constexpr int kWarps = kRowThreads / kWarp, kAhead = form == MatrixForm::kBlocks4 && rows == 1 ? 4 : 2;
  const int chunks = static_cast<int>(step.inputs / kChunk);

  for (int64_t number = int64_t{blockIdx.x} * kWarps + warp; number < units.all;
       number += int64_t{gridDim.x} * kWarps) {
    int64_t unit = number;
    const int32_t m = step.gated ? 0 : matrix_of(units, &unit);
    const DeviceMatrix& left = step.matrix[m];
    const DeviceMatrix& right = step.matrix[step.gated ? 1 : m];
    const OutputPair pair = step.gated ? OutputPair{unit, unit} : output_pair(step, m, unit);
    const int64_t second = pair.second < right.outputs ? pair.second : pair.first;
    const Row outputs[2] = {Row(step, left, pair.first, shift), Row(step, right, second, shift)};
    float sum[2][rows] = {};
    for (int begin = lane; begin < chunks; begin += kWarp * kAhead) {
      typename Row::Sixteen weights[2][kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int chunk = begin + i * kWarp;
        if (chunk >= chunks) continue;
        weights[0][i] = outputs[0].load(chunk);
        weights[1][i] = outputs[1].load(chunk);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int chunk = begin + i * kWarp;
        if (chunk >= chunks) continue;
#pragma unroll
        for (int b = 0; b < rows; ++b) {
          const int64_t at = input_row<normed>(step, first_row, b) + chunk * kChunk;
          const Eight<type> low = Eight<type>::load(input, at), high = Eight<type>::load(input, at + kWide);
          float part[2] = {0, 0};
#pragma unroll
          for (int j = 0; j < kChunk; ++j) {
            const float x = j < kWide ? low[j] : high[j - kWide];
            part[0] = fmaf(x, weights[0][i][j], part[0]);
            part[1] = fmaf(x, weights[1][i][j], part[1]);
          }
          sum[0][b] = fmaf(part[0], weights[0][i].scale(), sum[0][b]);
          sum[1][b] = fmaf(part[1], weights[1][i].scale(), sum[1][b]);
        }
      }
    }
#pragma unroll
    for (int b = 0; b < rows; ++b) {
      for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        sum[0][b] += shuffled(sum[0][b], distance);
        sum[1][b] += shuffled(sum[1][b], distance);
      }
      if (lane == 0 && first_row + b < step.rows) {
        finish_pair(step, m, first_row + b, pair, sum[0][b], sum[1][b]);
      }
    }
  }
}

// --- which kernel ----------------------------------------------------------------------------------------

constexpr int64_t kManyTiles = 96;  // fewer leave some of a large GPU's multiprocessors without work

// Of a gated step the first matrix' stand for both.
Tiles count_through(const LinearStep& step, int64_t (*of)(const LinearStep&, int32_t)) {
  const int32_t matrices = step.gated ? 1 : step.matrices;
  Tiles tiles{};
  tiles.first = of(step, 0);
  tiles.second = tiles.first + (matrices > 1 ? of(step, 1) : 0);
  tiles.all = tiles.second + (matrices > 2 ? of(step, 2) : 0);
  return tiles;
}

template <int groups>
int64_t tiles_of(const LinearStep& step, int32_t m) {
  return (step.matrix[m].outputs + groups * kWide - 1) / (groups * kWide);
}

template <FloatType type, int groups, int rows, bool gated>
void launch_columns(const LinearStep& step, int64_t first_row, StreamHandle stream) {
  const Tiles tiles = count_through(step, &tiles_of<groups>);
  const auto blocks = static_cast<unsigned>(tiles.all);
  if (step.norm != nullptr) {
    launch(columns_kernel<type, groups, rows, gated, true>, blocks, kColumnThreads, stream, "a layer", step,
           first_row, tiles);
  } else {
    launch(columns_kernel<type, groups, rows, gated, false>, blocks, kColumnThreads, stream, "a layer", step,
           first_row, tiles);
  }
}

template <FloatType type, int rows>
void launch_columns(const LinearStep& step, int64_t first_row, StreamHandle stream) {
  constexpr int kNarrow = 2, kBroad = 8;
  const Tiles tiles = count_through(step, &tiles_of<kBroad>);
  // A rotated matrix' tile must not go over the end of half a head.
  const bool broad =
      tiles.all >= kManyTiles && (step.rotated == 0 || step.head_dim / 2 % (kBroad / 2 * kWide) == 0);
  if (step.gated) {
    broad ? launch_columns<type, kBroad, rows, true>(step, first_row, stream)
          : launch_columns<type, kNarrow, rows, true>(step, first_row, stream);
  } else {
    broad ? launch_columns<type, kBroad, rows, false>(step, first_row, stream)
          : launch_columns<type, kNarrow, rows, false>(step, first_row, stream);
  }
}

template <FloatType type, MatrixForm form, int rows>
void launch_rows(const LinearStep& step, int64_t first_row, StreamHandle stream) {
  const Tiles units = count_through(step, &output_units);
  constexpr int64_t kWarps = kRowThreads / kWarp, kMostBlocks = 2048;
  const auto blocks = static_cast<unsigned>(std::min((units.all + kWarps - 1) / kWarps, kMostBlocks));
  int shift = 0;
  while (kChunk << shift < step.block) ++shift;
  if (step.norm != nullptr) {
    launch(rows_kernel<type, form, rows, true>, blocks, kRowThreads, stream, "a layer", step, first_row,
           units, shift);
  } else {
    launch(rows_kernel<type, form, rows, false>, blocks, kRowThreads, stream, "a layer", step, first_row,
           units, shift);
  }
}

template <FloatType type, int rows>
void launch_few(const LinearStep& step, int64_t first_row, StreamHandle stream) {
  switch (step.form) {
    case MatrixForm::kColumns:
      return launch_columns<type, rows>(step, first_row, stream);
    case MatrixForm::kRows:
      return launch_rows<type, MatrixForm::kRows, rows>(step, first_row, stream);
    case MatrixForm::kBlocks4:
      return launch_rows<type, MatrixForm::kBlocks4, rows>(step, first_row, stream);
    case MatrixForm::kBlocks8:
      return launch_rows<type, MatrixForm::kBlocks8, rows>(step, first_row, stream);
  }
}

// Rows side by side, where their normalised input fits a block's shared memory; float32, which is for
// checking and not for speed, takes one after the other.
template <FloatType type>
void few_rows(const LinearStep& step, StreamHandle stream) {
  constexpr int kMost = type == FloatType::kFloat32 ? 1 : kTogether;
  const bool fit = step.norm == nullptr || kMost * step.inputs * float_size(type) <= kStagedBytes;
  for (int64_t row = 0; row < step.rows;) {
    const bool together = step.rows - row > 1 && fit;
    together ? launch_few<type, kMost>(step, row, stream) : launch_few<type, 1>(step, row, stream);
    row += together ? kMost : 1;
  }
}

// Whether the kernels for few rows take this step's sizes.
bool fits_few(const LinearStep& step) {
  if (step.rows > kFewRows) return false;
  if (step.norm != nullptr && step.inputs * float_size(step.type) > kStagedBytes) return false;
  for (int32_t m = 0; m < step.matrices; ++m) {
    if (step.form == MatrixForm::kColumns) {
      if (step.matrix[m].outputs % kWide != 0) return false;
      if (m < step.rotated && step.head_dim / 2 % kWide != 0) return false;
    }
  }
  if (step.form == MatrixForm::kColumns) return true;
  const bool whole_blocks =
      step.form == MatrixForm::kRows || (step.block >= kChunk && (step.block & (step.block - 1)) == 0);
  return step.inputs % kChunk == 0 && whole_blocks;
}

// --- many rows -------------------------------------------------------------------------------------------

constexpr int kNormThreads = 256;

__global__ void __launch_bounds__(kNormThreads) normalize_kernel(LinearStep step, void* target) {
  __shared__ BlockTeam::Slot reduction[32];
  const BlockTeam team{reduction};
  const int64_t first = int64_t{blockIdx.x} * step.inputs;
  float squares = 0;
  for (int64_t k = team.rank(); k < step.inputs; k += team.size()) {
    const float x = load_float(step.x, step.type, first + k);
    squares += x * x;
  }
  squares = team.reduce(squares, [](float a, float b) { return a + b; });
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(step.inputs) + step.epsilon);
  for (int64_t k = team.rank(); k < step.inputs; k += team.size()) {
    store_float(target, step.type, first + k,
                load_float(step.x, step.type, first + k) * scale * load_float(step.norm, step.type, k));
  }
}

struct Dequantize {
  LinearStep step;
  DeviceMatrix matrix;
  void* target;  // [N, K]
  __device__ void operator()(int64_t index) const {
    store_float(target, step.type, index,
                block_weight(step, matrix, index / step.inputs, index % step.inputs));
  }
};

// What products of matrices left, finished: of a gated step the second matrix' in `gate`.
struct FinishUnit {
  LinearStep step;
  int32_t m;
  const void *source, *gate;
  __device__ void operator()(int64_t index) const {
    const int64_t units = output_units(step, m), row = index / units, unit = index % units;
    const DeviceMatrix& matrix = step.matrix[m];
    const OutputPair pair = step.gated ? OutputPair{unit, unit} : output_pair(step, m, unit);
    const float first = load_float(source, step.type, row * matrix.outputs + pair.first);
    float second = 0;
    if (pair.second < matrix.outputs) {
      second = load_float(step.gated ? gate : source, step.type, row * matrix.outputs + pair.second);
    }
    finish_pair(step, m, row, pair, first, second);
  }
};

// One output after the other, for sizes that no better kernel takes.
struct ProductUnit {
  LinearStep step;
  int32_t m;
  __device__ float product(const DeviceMatrix& matrix, int64_t row, int64_t n) const {
    float sum = 0;
    if (n >= matrix.outputs) return sum;
    for (int64_t k = 0; k < step.inputs; ++k) {
      sum += load_float(step.x, step.type, row * step.inputs + k) * linear_weight(step, matrix, n, k);
    }
    return sum;
  }
  __device__ void operator()(int64_t index) const {
    const int64_t units = output_units(step, m), row = index / units, unit = index % units;
    const OutputPair pair = step.gated ? OutputPair{unit, unit} : output_pair(step, m, unit);
    const float second =
        step.gated ? product(step.matrix[1], row, unit) : product(step.matrix[m], row, pair.second);
    finish_pair(step, m, row, pair, product(step.matrix[m], row, pair.first), second);
  }
};

void multiply(const LinearStep& step, const DeviceMatrix& matrix, void* unpacked, void* target,
              StreamHandle stream) {
  const bool blocks = step.form == MatrixForm::kBlocks4 || step.form == MatrixForm::kBlocks8;
  if (blocks) {
    for_each(matrix.outputs * step.inputs, Dequantize{step, matrix, unpacked}, stream, "unpacking weights");
  }
  gemm({step.type, step.rows, matrix.outputs, step.inputs, step.x, blocks ? unpacked : matrix.weights,
        step.form != MatrixForm::kColumns, target},
       stream);
}

}  // namespace

void linear(const LinearStep& given, void* scratch, CUstream_st* stream) {
  if (given.rows <= 0) return;
  if (fits_few(given)) {
    switch (given.type) {
      case FloatType::kFloat32:
        return few_rows<FloatType::kFloat32>(given, stream);
      case FloatType::kBFloat16:
        return few_rows<FloatType::kBFloat16>(given, stream);
      case FloatType::kFloat16:
        return few_rows<FloatType::kFloat16>(given, stream);
    }
  }
  const LinearScratch layout(given);
  char* const memory = static_cast<char*>(scratch);
  LinearStep step = given;
  if (step.norm != nullptr) {
    launch(normalize_kernel, static_cast<unsigned>(step.rows), kNormThreads, stream, "a norm", given,
           static_cast<void*>(memory + layout.normalized));
    step.x = memory + layout.normalized;
    step.norm = nullptr;
  }
  for (int32_t m = 0; m < (step.gated ? 1 : step.matrices); ++m) {
    const int64_t units = step.rows * output_units(step, m);
    if (step.rows <= kFewRows) {
      for_each(units, ProductUnit{step, m}, stream, "a layer");
      continue;
    }
    void* const gate = memory + layout.gate;
    const bool other_type = step.result_type != step.type;
    void* const product = other_type ? memory + layout.product : step.matrix[m].result;
    multiply(step, step.matrix[m], memory + layout.unpacked, product, stream);
    if (step.gated) multiply(step, step.matrix[1], memory + layout.unpacked, gate, stream);
    if (other_type || step.gated || step.added != nullptr || m < step.rotated ||
        step.matrix[m].bias != nullptr) {
      for_each(units, FinishUnit{step, m, product, gate}, stream, "finishing a layer");
    }
  }
}

}  // namespace qwen2vl::cuda
