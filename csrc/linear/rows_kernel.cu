#include <algorithm>

#include "linear/few_rows.cuh"

// Rows of K: a warp takes two outputs.
namespace qwen2vl::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 2 * kWide;  // inputs that a lane takes at once

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
__global__ void __launch_bounds__(kThreads, 2)
    rows_kernel(LinearStep step, int64_t first_row, Tiles units, int shift) {
  using Row = OutputRow<type, form>;
  __shared__ BlockTeam::Slot reduction[32];
  __shared__ Vector staged[normed ? kStagedBytes / sizeof(Vector) : 1];
  if (normed) stage<type, rows>(BlockTeam{reduction}, step, first_row, reinterpret_cast<char*>(staged));
  const void* const input = normed ? static_cast<const void*>(staged) : step.x;

  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  // Loads that are under way at once.
  constexpr int kWarps = kThreads / kWarp, kAhead = form == MatrixForm::kBlocks4 && rows == 1 ? 4 : 2;
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

template <FloatType type, MatrixForm form, int rows>
void launch_rows(const LinearStep& step, int64_t first_row, StreamHandle stream) {
  const Tiles units = count_through(step, &output_units);
  constexpr int64_t kWarps = kThreads / kWarp, kMostBlocks = 2048;
  const auto blocks = static_cast<unsigned>(std::min((units.all + kWarps - 1) / kWarps, kMostBlocks));
  int shift = 0;
  while (kChunk << shift < step.block) ++shift;
  if (step.norm != nullptr) {
    launch(rows_kernel<type, form, rows, true>, blocks, kThreads, stream, "a layer", step, first_row, units,
           shift);
  } else {
    launch(rows_kernel<type, form, rows, false>, blocks, kThreads, stream, "a layer", step, first_row, units,
           shift);
  }
}

template <FloatType type, int rows>
void launch_form(const LinearStep& step, int64_t first_row, StreamHandle stream) {
  if (step.form == MatrixForm::kRows) {
    launch_rows<type, MatrixForm::kRows, rows>(step, first_row, stream);
  } else if (step.form == MatrixForm::kBlocks4) {
    launch_rows<type, MatrixForm::kBlocks4, rows>(step, first_row, stream);
  } else {
    launch_rows<type, MatrixForm::kBlocks8, rows>(step, first_row, stream);
  }
}

}  // namespace

bool few_rows_by_rows(const LinearStep& step, StreamHandle stream) {
  const bool whole_blocks =
      step.form == MatrixForm::kRows || (step.block >= kChunk && (step.block & (step.block - 1)) == 0);
  if (step.inputs % kChunk != 0 || !whole_blocks || !stages(step)) return false;
  for_type(step, [&](auto type) {
    for_rows<type()>(step, [&](auto rows, int64_t row) { launch_form<type(), rows()>(step, row, stream); });
  });
  return true;
}

}  // namespace qwen2vl::cuda
