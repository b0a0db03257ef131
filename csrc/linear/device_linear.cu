#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "cuda/block_team.cuh"
#include "cuda/gemm.h"
#include "cuda/launch.cuh"
#include "cuda/words.cuh"
#include "linear/device_linear.h"
#include "linear/few_rows.h"
#include "linear/scratch_layout.h"

// Which kernels take a step, and the products of many rows with what stands around them.
namespace qwen2vl::cuda {

namespace {

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

constexpr int kUnpacked = 16;  // weights that a thread makes, and stores at once

template <FloatType type>
struct Dequantize {
  LinearStep step;
  DeviceMatrix matrix;
  void* target;  // [N, K]
  struct alignas(16) Numbers {
    std::conditional_t<type == FloatType::kFloat32, float, uint16_t> values[kUnpacked];
  };

  __device__ void operator()(int64_t index) const {
    // 32 bits: divisions of 64 take longer than all the rest.
    const auto pieces = static_cast<uint32_t>((step.inputs + kUnpacked - 1) / kUnpacked);
    const int64_t n = static_cast<uint32_t>(index) / pieces;
    const int64_t begin = static_cast<uint32_t>(index) % pieces * int64_t{kUnpacked};
    if (step.block % kUnpacked == 0 && step.inputs % kUnpacked == 0) {
      const BlockScale scale = block_scale(step, matrix, n, begin);
      Numbers numbers;
      const int64_t first = n * ((step.inputs + step.block - 1) / step.block) * step.block + begin;
      step.form == MatrixForm::kBlocks4 ? unpack<4>(first, scale, &numbers)
                                        : unpack<8>(first, scale, &numbers);
      static_cast<Numbers*>(target)[(n * step.inputs + begin) / kUnpacked] = numbers;
      return;
    }
    for (int64_t k = begin; k < min(begin + kUnpacked, step.inputs); ++k) {
      store_float(target, type, n * step.inputs + k, linear_weight(step, matrix, n, k));
    }
  }

  // `first`: the first of the codes, counted from the matrix' first.
  template <int bits>
  __device__ void unpack(int64_t first, BlockScale scale, Numbers* numbers) const {
    struct alignas(2 * bits) Codes {
      uint32_t words[bits / 2];
    };
    const Codes codes = static_cast<const Codes*>(matrix.weights)[first / kUnpacked];
#pragma unroll
    for (int i = 0; i < kUnpacked; ++i) {
      const int at = i * bits, code = static_cast<int>(codes.words[at / 32] >> at % 32 & ((1u << bits) - 1));
      store_float(numbers->values, type, i, scale(code));
    }
  }
};

constexpr int kFinishThreads = 256, kFinishedUnits = 2;  // of a thread, loaded side by side

// Whether a product of matrix m is not yet what the step's result is.
QWEN2VL_HOST_DEVICE bool is_unfinished(const LinearStep& step, int32_t m) {
  return step.gated != 0 || step.added != nullptr || m < step.rotated || step.matrix[m].bias != nullptr;
}

// What products of matrices left in the results, finished there: of a gated step the second matrix' is in
// `gate`. Block (x, y, z): units of one row after the other; matrix z.
template <FloatType type>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(LinearStep step, const void* gate) {
  const auto m = static_cast<int32_t>(blockIdx.z);
  if (!is_unfinished(step, m)) return;
  const auto units = static_cast<int>(output_units(step, m));
  const int first_unit =
      static_cast<int>(blockIdx.x) * kFinishThreads * kFinishedUnits + static_cast<int>(threadIdx.x);
  if (first_unit >= units) return;
  const DeviceMatrix& matrix = step.matrix[m];
  const void *const source = matrix.result, *const second_source = step.gated ? gate : source;
  const FloatType product_type = step.result_type == FloatType::kFloat32 ? FloatType::kFloat32 : type;
  for (int64_t row = blockIdx.y; row < step.rows; row += gridDim.y) {
    OutputPair pairs[kFinishedUnits];
    PairTerms terms[kFinishedUnits];
    uint32_t products[kFinishedUnits][2];
#pragma unroll
    for (int i = 0; i < kFinishedUnits; ++i) {
      // Beyond the last its own first again: others' are overwritten meanwhile.
      const int own = first_unit + i * kFinishThreads, unit = own < units ? own : first_unit;
      pairs[i] = step.gated ? OutputPair{unit, unit} : output_pair(step, m, unit);
      const int64_t second = min(pairs[i].second, matrix.outputs - 1);  // beyond the last nobody looks
      products[i][0] = load_bits(source, product_type, row * matrix.outputs + pairs[i].first);
      products[i][1] = load_bits(second_source, product_type, row * matrix.outputs + second);
      terms[i] = pair_terms(step, type, m, row, pairs[i]);
    }
#pragma unroll
    for (int i = 0; i < kFinishedUnits; ++i) {
      if (first_unit + i * kFinishThreads >= units) break;
      finish_pair(step, type, m, row, pairs[i], terms[i], float_of_bits(products[i][0], product_type),
                  float_of_bits(products[i][1], product_type));
    }
  }
}

template <FloatType type>
void finish(const LinearStep& step, const void* gate, StreamHandle stream) {
  constexpr int64_t kMostRows = 65535, kEach = kFinishThreads * kFinishedUnits;
  const int32_t matrices = step.gated ? 1 : step.matrices;
  int64_t most = 0;
  for (int32_t m = 0; m < matrices; ++m) most = std::max(most, output_units(step, m));
  const dim3 blocks(static_cast<unsigned>((most + kEach - 1) / kEach),
                    static_cast<unsigned>(std::min(step.rows, kMostRows)), static_cast<unsigned>(matrices));
  launch(finish_kernel<type>, blocks, kFinishThreads, stream, "finishing a layer", step, gate);
}

void finish(const LinearStep& step, const void* gate, StreamHandle stream) {
  switch (step.type) {
    case FloatType::kFloat32:
      return finish<FloatType::kFloat32>(step, gate, stream);
    case FloatType::kBFloat16:
      return finish<FloatType::kBFloat16>(step, gate, stream);
    case FloatType::kFloat16:
      return finish<FloatType::kFloat16>(step, gate, stream);
  }
}

constexpr int kProductThreads = 256;

// Few rows in sizes and formats that no better kernel takes, float32 first of all: a warp takes one row's
// outputs of a unit after the other.
__global__ void __launch_bounds__(kProductThreads) product_kernel(LinearStep step, int32_t m) {
  const int64_t units = output_units(step, m), all = step.rows * units;
  const int64_t warps = int64_t{gridDim.x} * blockDim.x / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const DeviceMatrix& first = step.matrix[m];
  const DeviceMatrix& second = step.gated ? step.matrix[1] : first;
  for (int64_t index = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32; index < all; index += warps) {
    const int64_t row = index / units, unit = index % units;
    const OutputPair pair = step.gated ? OutputPair{unit, unit} : output_pair(step, m, unit);
    const int64_t other = min(pair.second, second.outputs - 1);  // beyond the last nobody looks
    float sums[2] = {0, 0};
#pragma unroll 4
    for (int64_t k = lane; k < step.inputs; k += 32) {
      const float x = load_float(step.x, step.type, row * step.inputs + k);
      sums[0] = fmaf(x, linear_weight(step, first, pair.first, k), sums[0]);
      sums[1] = fmaf(x, linear_weight(step, second, other, k), sums[1]);
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      for (float& sum : sums) sum += shuffled(sum, distance);
    }
    if (lane == 0) finish_pair(step, step.type, m, row, pair, sums[0], sums[1]);
  }
}

void few_products(const LinearStep& step, int32_t m, StreamHandle stream) {
  constexpr int64_t kMostBlocks = 4096, kWarps = kProductThreads / 32;
  const int64_t blocks = (step.rows * output_units(step, m) + kWarps - 1) / kWarps;
  launch(product_kernel, static_cast<unsigned>(std::min(blocks, kMostBlocks)), kProductThreads, stream,
         "a layer", step, m);
}

void multiply(const LinearStep& step, const DeviceMatrix& matrix, void* unpacked, void* target,
              StreamHandle stream) {
  const bool blocks = step.form == MatrixForm::kBlocks4 || step.form == MatrixForm::kBlocks8;
  if (blocks) {
    const int64_t pieces = matrix.outputs * ((step.inputs + kUnpacked - 1) / kUnpacked);
    const auto unpack = [&](auto dequantize) { for_each(pieces, dequantize, stream, "unpacking weights"); };
    switch (step.type) {
      case FloatType::kFloat32:
        unpack(Dequantize<FloatType::kFloat32>{step, matrix, unpacked});
        break;
      case FloatType::kBFloat16:
        unpack(Dequantize<FloatType::kBFloat16>{step, matrix, unpacked});
        break;
      case FloatType::kFloat16:
        unpack(Dequantize<FloatType::kFloat16>{step, matrix, unpacked});
        break;
    }
  }
  gemm({step.type, step.result_type, step.rows, matrix.outputs, step.inputs, step.x,
        blocks ? unpacked : matrix.weights, target},
       stream);
}

}  // namespace

void linear(const LinearStep& given, void* scratch, CUstream_st* stream) {
  if (given.rows <= 0) return;
  if (given.rows <= kFewLinearRows && few_rows(given, stream)) return;
  const LinearScratch layout(given);
  char* const memory = static_cast<char*>(scratch);
  LinearStep step = given;
  if (step.norm != nullptr) {
    launch(normalize_kernel, static_cast<unsigned>(step.rows), kNormThreads, stream, "a norm", given,
           static_cast<void*>(memory + layout.normalized));
    step.x = memory + layout.normalized;
    step.norm = nullptr;
  }
  const int32_t matrices = step.gated ? 1 : step.matrices;
  void* const gate = memory + layout.gate;
  bool unfinished = false;
  for (int32_t m = 0; m < matrices; ++m) {
    if (step.rows <= kFewLinearRows) {
      few_products(step, m, stream);
      continue;
    }
    multiply(step, step.matrix[m], memory + layout.unpacked, step.matrix[m].result, stream);
    if (step.gated) multiply(step, step.matrix[1], memory + layout.unpacked, gate, stream);
    unfinished = unfinished || is_unfinished(step, m);
  }
  if (unfinished) finish(step, gate, stream);
}

}  // namespace qwen2vl::cuda
