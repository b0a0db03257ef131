#include <cuda_runtime.h>

#include "cuda/block_team.cuh"
#include "cuda/gemm.h"
#include "cuda/launch.cuh"
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

constexpr int64_t kUnpacked = 16;  // weights that a thread makes

struct Dequantize {
  LinearStep step;
  DeviceMatrix matrix;
  void* target;  // [N, K]
  __device__ void operator()(int64_t index) const {
    // 32 bits: divisions of 64 take longer than all the rest.
    const auto pieces = static_cast<uint32_t>((step.inputs + kUnpacked - 1) / kUnpacked);
    const int64_t n = static_cast<uint32_t>(index) / pieces;
    const int64_t begin = static_cast<uint32_t>(index) % pieces * kUnpacked;
    const int64_t end = min(begin + kUnpacked, step.inputs);
    BlockScale scale{};
    for (int64_t k = begin; k < end; ++k) {
      if (k == begin || step.block % kUnpacked != 0) scale = block_scale(step, matrix, n, k);
      store_float(target, step.type, n * step.inputs + k, scale(block_code(step, matrix, n, k)));
    }
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
    const float first = load_float(source, step.result_type, row * matrix.outputs + pair.first);
    float second = 0;
    if (pair.second < matrix.outputs) {
      second = load_float(step.gated ? gate : source, step.result_type, row * matrix.outputs + pair.second);
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
    const int64_t pieces = (step.inputs + kUnpacked - 1) / kUnpacked;
    for_each(matrix.outputs * pieces, Dequantize{step, matrix, unpacked}, stream, "unpacking weights");
  }
  gemm({step.type, step.result_type, step.rows, matrix.outputs, step.inputs, step.x, blocks ? unpacked : matrix.weights, target},
       stream);
}

}  // namespace

void linear(const LinearStep& given, void* scratch, CUstream_st* stream) {
  if (given.rows <= 0) return;
  if (given.rows <= kFewRows && few_rows(given, stream)) return;
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
    void *const gate = memory + layout.gate, *const product = step.matrix[m].result;
    multiply(step, step.matrix[m], memory + layout.unpacked, product, stream);
    if (step.gated) multiply(step, step.matrix[1], memory + layout.unpacked, gate, stream);
    if (step.gated || step.added != nullptr || m < step.rotated ||
        step.matrix[m].bias != nullptr) {
      for_each(units, FinishUnit{step, m, product, gate}, stream, "finishing a layer");
    }
  }
}

}  // namespace qwen2vl::cuda