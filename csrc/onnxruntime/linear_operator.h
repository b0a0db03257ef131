#pragma once

#include <algorithm>
#include <cstring>
#include <string>

#include "common/ceil_divide.h"
#include "common/mapped_memory.h"
#include "common/scratch.h"
#include "integer/linear.h"
#include "integer/quantize.h"
#include "onnxruntime/linear_inputs.h"
#include "onnxruntime/operator.h"
#include "onnxruntime/shapes.h"

namespace qwen2vl::ort {

// Up to three layers with integer weights over one input, y_i = input @ W_i^T (+ bias_i) (+ added), float32
// [.., K] -> [.., N_i]: integer/linear.h. The input is x, or x normalised, or x * sigmoid(slope * x) (*
// other), rounded to 8 bits: token by token (TokenLinear) or by blocks of 128 (BlockLinear). A class F of the
// weights' form:
//   kInputs, Matrix          all inputs, and the order of a matrix's own: onnxruntime/linear_inputs.h
//   linear(api, info, index, first)   matrix `index`, whose inputs begin at `first`
// Inputs: x; optional: other [.., K], norm's weight [K], norm's bias [K], added [.., N] (of one layer only).
// Attributes: layers (how many), slope (0: no sigmoid), norm (0 none, 1 RMS, 2 layer), epsilon (the norm's).
template <typename F>
class LinearOperator : public F {
 public:
  using F::kInputs;
  static constexpr Port kOutputs[] = {{kFloat}, {kFloat, true}, {kFloat, true}};
  static_assert(std::size(kInputs) == LinearInput::kFirstMatrix + kMostLayers * F::Matrix::kCount);
  static_assert(std::size(kOutputs) == kMostLayers);

  LinearOperator(const Api& api, const KernelInfo* info)
      : quantize_(quantize_kernels()),
        slope_(float_attribute(api, info, "slope")),
        norm_(integer_attribute(api, info, "norm")),
        epsilon_(float_attribute(api, info, "epsilon")) {
    if (!IntegerLinear::supported())
      throw Error(std::string(F::kName) + " runs on x86-64 with AVX-512 VNNI only");
    const int64_t layers = integer_attribute(api, info, "layers");
    for (int64_t i = 0; i < layers; ++i) layers_.push_back(F::linear(api, info, i, first_input(i)));
    if (layers_.empty() || std::any_of(layers_.begin(), layers_.end(), [&](const IntegerLinear& layer) {
          return layer.inputs() != layers_[0].inputs();
        })) {
      throw Error(std::string(F::kName) + ": layers that stand together take one input");
    }
  }

  void compute(const Call& call) const {
    auto shape = call.shape(0);
    const IntegerLinear& any = layers_[0];
    const int64_t k = any.inputs(), blocks = any.blocks(), padded = any.padded_inputs(),
                  rows = rows_of(shape);
    if (shape.back() != k)
      throw Error("a layer of " + std::to_string(k) + " inputs got " + std::to_string(shape.back()));
    const auto* added = call.data<float>(LinearInput::kAdded);
    std::vector<float*> outputs;
    std::vector<Addends> addends;
    std::vector<int64_t> ends;  // of the layers' panels, when those of all are counted through
    for (size_t i = 0; i < layers_.size(); ++i) {
      shape.back() = layers_[i].outputs();
      outputs.push_back(call.output<float>(i, shape));
      addends.push_back({call.data<float>(first_input(i) + F::Matrix::kBias), added});
      ends.push_back((i == 0 ? 0 : ends.back()) + layers_[i].panels());
    }

    auto* scales = static_cast<float*>(shared_scratch(rows * (padded + 2 * blocks * sizeof(float))));
    auto* sums = reinterpret_cast<int32_t*>(scales + rows * blocks);
    auto* codes = reinterpret_cast<int8_t*>(sums + rows * blocks);
    const Input input{call.data<float>(LinearInput::kX),
                      call.data<float>(LinearInput::kOther),
                      {call.data<float>(LinearInput::kNormWeight), call.data<float>(LinearInput::kNormBias),
                       epsilon_, norm_ == 2}};
    parallel_rows(call, rows, k, [&](int64_t r) {
      quantize(input, r, codes + r * padded, scales + r * blocks);
      any.add_up(codes + r * padded, 1, sums + r * blocks);
    });

    const int64_t panels = ends.back(), tasks = tasks_of(panels, panels * any.panel_bytes() * rows, rows);
    call.parallel(tasks, [&](size_t task) {
      int64_t begin = panels * task / tasks;
      const int64_t end = panels * (task + 1) / tasks;
      for (size_t i = 0; begin < end; ++i) {
        const int64_t layer_end = std::min(end, ends[i]), offset = ends[i] - layers_[i].panels();
        if (begin >= layer_end) continue;
        layers_[i].run({codes, scales, sums}, rows, addends[i], begin - offset, layer_end - offset,
                       outputs[i]);
        begin = layer_end;
      }
    });
  }

 private:
  struct Input {
    const float *x, *other;
    Normalization norm;
  };

  static int64_t first_input(int64_t layer) { return LinearInput::kFirstMatrix + layer * F::Matrix::kCount; }

  // So much work a task that a thread's waking up does not show, and enough of them to share evenly. Of many
  // tokens a task has as many panels as go well together.
  static int64_t tasks_of(int64_t panels, int64_t bytes, int64_t rows) {
    constexpr int64_t kBytesATask = 192 << 10;  // some microseconds at the memory's speed
    constexpr int64_t kManyRows = 12, kMostPanels = 4, kEnoughTasks = 24;
    const int64_t together =
        rows < kManyRows ? 1 : std::clamp<int64_t>(panels / kEnoughTasks, 1, kMostPanels);
    return std::clamp<int64_t>(bytes / kBytesATask, 1, ceil_divide(panels, together));
  }

  // One token's codes and scales.
  void quantize(const Input& input, int64_t row, int8_t* codes, float* scales) const {
    const int64_t k = layers_[0].inputs();
    const float* x = input.x + row * k;
    const float* other = input.other == nullptr ? nullptr : input.other + row * k;
    auto* changed = static_cast<float*>(thread_scratch(k * sizeof(float)));
    if (norm_ != 0) {
      quantize_.normalize(x, input.norm, k, changed);
      x = changed;
    } else if (slope_ != 0 || other != nullptr) {
      quantize_.activate({x, 1, nullptr, slope_, other, 1}, k, changed);
      x = changed;
    }
    quantize_.quantize(x, k, layers_[0].block(), 0, reinterpret_cast<uint8_t*>(codes), scales);
    std::memset(codes + k, 0, layers_[0].padded_inputs() - k);
  }

  const QuantizeKernels& quantize_;
  const float slope_;
  const int64_t norm_;
  const float epsilon_;
  std::vector<IntegerLinear> layers_;
};

// A constant tensor's numbers.
template <typename T>
const T* constant_data(const Api& api, const KernelInfo* info, size_t index, const char* name) {
  const Value* value = constant_input(api, info, index);
  if (value == nullptr)
    throw Error(std::string(name) + ": weights, scales and zero points must be constants");
  return static_cast<const T*>(data_of(api, value));
}

// Whether a matrix's codes lie in a mapped file, whose pages are not needed once they are packed: bit `layer`
// of the attribute `mapped`.
inline void packed(const Api& api, const KernelInfo* info, int64_t layer, const void* codes, int64_t bytes) {
  if (integer_attribute(api, info, "mapped") >> layer & 1) drop_file_pages(codes, bytes);
}

// Weights int8 [K, N] with a scale for each output. A matrix's inputs: weights, scales float32 [N], bias
// float32 [N] (optional).
struct TokenWeights {
  static constexpr const char* kName = "TokenLinear";
  using Matrix = ChannelMatrix;
  static constexpr Port kInputs[] = {{kFloat},       {kFloat, true}, {kFloat, true}, {kFloat, true},
                                     {kFloat, true}, {kInt8, true},  {kFloat, true}, {kFloat, true},
                                     {kInt8, true},  {kFloat, true}, {kFloat, true}, {kInt8, true},
                                     {kFloat, true}, {kFloat, true}};

  static IntegerLinear linear(const Api& api, const KernelInfo* info, int64_t layer, int64_t first) {
    const auto* codes = constant_data<int8_t>(api, info, first + Matrix::kCodes, kName);
    const auto shape = shape_of(api, constant_input(api, info, first + Matrix::kCodes));
    auto linear = IntegerLinear::of_channels(
        codes, constant_data<float>(api, info, first + Matrix::kScales, kName), shape[0], shape[1]);
    packed(api, info, layer, codes, shape[0] * shape[1]);
    return linear;
  }
};
using TokenLinearOperator = LinearOperator<TokenWeights>;

// Weights in blocks of 128 inputs. A matrix's inputs: codes uint8 [N, blocks, 128 * bits / 8], scales float32
// [N, blocks], zero points uint8 [N, bytes of a row] (optional), bias float32 [N] (optional). Attributes: K,
// bits (4 or 8), and zero_points: which matrices have them, a bit each.
struct BlockWeights {
  static constexpr const char* kName = "BlockLinear";
  using Matrix = BlockMatrix;
  static constexpr Port kInputs[] = {
      {kFloat},       {kFloat, true}, {kFloat, true}, {kFloat, true}, {kFloat, true}, {kUInt8, true},
      {kFloat, true}, {kUInt8, true}, {kFloat, true}, {kUInt8, true}, {kFloat, true}, {kUInt8, true},
      {kFloat, true}, {kUInt8, true}, {kFloat, true}, {kUInt8, true}, {kFloat, true}};

  static IntegerLinear linear(const Api& api, const KernelInfo* info, int64_t layer, int64_t first) {
    const auto* codes = constant_data<uint8_t>(api, info, first + Matrix::kCodes, kName);
    const auto shape = shape_of(api, constant_input(api, info, first + Matrix::kCodes));
    const bool zero_points = integer_attribute(api, info, "zero_points") >> layer & 1;
    auto linear = IntegerLinear::of_blocks(
        static_cast<int>(integer_attribute(api, info, "bits")), codes,
        constant_data<float>(api, info, first + Matrix::kScales, kName),
        zero_points ? constant_data<uint8_t>(api, info, first + Matrix::kZeroPoints, kName) : nullptr,
        integer_attribute(api, info, "K"), shape[0]);
    packed(api, info, layer, codes, shape[0] * shape[1] * shape[2]);
    return linear;
  }
};
using BlockLinearOperator = LinearOperator<BlockWeights>;

}  // namespace qwen2vl::ort
