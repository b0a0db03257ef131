#pragma once

#include <string>
#include <vector>

#include "cuda/workspace.h"
#include "linear/device_linear.h"
#include "onnxruntime/linear_inputs.h"
#include "onnxruntime/operator.h"
#include "onnxruntime/shapes.h"

namespace qwen2vl::cuda {

template <FloatType type>
constexpr ort::ElementType kElement = type == FloatType::kFloat32    ? ort::kFloat
                                      : type == FloatType::kBFloat16 ? ort::kBFloat16
                                                                     : ort::kFloat16;

// Numbers of the graph's own format: weights [N, K], bias.
template <FloatType type>
struct PlainMatrices {
  static constexpr const char* kName = type == FloatType::kFloat32    ? "PlainLinear_float32"
                                       : type == FloatType::kBFloat16 ? "PlainLinear_bfloat16"
                                                                      : "PlainLinear_float16";
  static constexpr ort::Port kX{kElement<type>}, kOptional{kElement<type>, true};
  static constexpr ort::Port kInputs[] = {kX,        kOptional, kOptional, kOptional, kOptional,
                                          kOptional, kOptional, kOptional, kOptional, kOptional,
                                          kOptional, kOptional, kOptional};
  using Matrix = ort::PlainMatrix;

  PlainMatrices(const ort::Api&, const ort::KernelInfo*) {}

  void describe(LinearStep* step) const { step->form = MatrixForm::kPlain; }
  DeviceMatrix matrix(const ort::Call& call, size_t first, LinearStep*) const {
    return {
        call.data<void>(first + Matrix::kWeights), nullptr, nullptr, call.data<void>(first + Matrix::kBias),
        call.shape(first + Matrix::kWeights)[0],   nullptr};
  }
};

// Codes of 4 or 8 bits as MatMulNBits has them: codes uint8 [N, blocks, bytes of a block], scales [N,
// blocks], zero points uint8 [N, bytes of a row], bias. Attribute bits.
template <FloatType type>
struct BlockMatrices {
  static constexpr const char* kName = type == FloatType::kFloat32    ? "BlocksLinear_float32"
                                       : type == FloatType::kBFloat16 ? "BlocksLinear_bfloat16"
                                                                      : "BlocksLinear_float16";
  static constexpr ort::Port kX{kElement<type>}, kOptional{kElement<type>, true}, kCodes{ort::kUInt8, true};
  static constexpr ort::Port kInputs[] = {
      kX,        kOptional, kOptional, kOptional, kOptional, kCodes, kOptional, kCodes,    kOptional, kCodes,
      kOptional, kCodes,    kOptional, kCodes,    kOptional, kCodes, kOptional, kOptional, kOptional};
  using Matrix = ort::BlockMatrix;

  BlockMatrices(const ort::Api& api, const ort::KernelInfo* info)
      : bits_(ort::integer_attribute(api, info, "bits")) {}

  void describe(LinearStep* step) const {
    step->form = bits_ == 4 ? MatrixForm::kBlocks4 : MatrixForm::kBlocks8;
  }
  DeviceMatrix matrix(const ort::Call& call, size_t first, LinearStep* step) const {
    const auto shape = call.shape(first + Matrix::kCodes);
    step->block = shape[2] * 8 / bits_;
    return {call.data<void>(first + Matrix::kCodes),
            call.data<void>(first + Matrix::kScales),
            call.data<uint8_t>(first + Matrix::kZeroPoints),
            call.data<void>(first + Matrix::kBias),
            shape[0],
            nullptr};
  }

 private:
  int64_t bits_;
};

// A LinearStep as an operator of ONNX Runtime's graphs, for each of the number formats that a GPU computes
// in; x is [.., K], results are [.., N]. Inputs: onnxruntime/linear_inputs.h, of which other and the norm's
// bias are never there; behind those of all matrices cos and sin [.., head_dim / 2]. Attributes: layers (how
// many matrices), norm (whether there is one), epsilon, gated, rotated: see LinearStep.
template <FloatType type, template <FloatType> typename Matrices>
class DeviceLinearOperator : public Matrices<type> {
 public:
  using Base = Matrices<type>;
  static constexpr ort::Port kOutputs[] = {{kElement<type>}, {kElement<type>, true}, {kElement<type>, true}};

  DeviceLinearOperator(const ort::Api& api, const ort::KernelInfo* info)
      : Base(api, info),
        layers_(ort::integer_attribute(api, info, "layers")),
        gated_(ort::integer_attribute(api, info, "gated")),
        rotated_(ort::integer_attribute(api, info, "rotated")),
        epsilon_(ort::float_attribute(api, info, "epsilon")) {
    if (layers_ < 1 || layers_ > kMostMatrices) throw Error("a linear operator has 1 to 3 layers");
    if (ort::integer_attribute(api, info, "norm") > 1)
      throw Error("a linear operator on a GPU has RMS norms");
  }

  void compute(const ort::Call& call) const {
    auto shape = call.shape(0);
    LinearStep step{};
    step.type = step.result_type = type;
    Base::describe(&step);
    step.inputs = shape.back();
    step.rows = ort::rows_of(shape);
    step.x = call.data<void>(ort::LinearInput::kX);
    step.norm = call.data<void>(ort::LinearInput::kNormWeight);
    step.epsilon = epsilon_;
    step.added = call.data<void>(ort::LinearInput::kAdded);
    step.matrices = static_cast<int32_t>(layers_);
    step.gated = static_cast<int32_t>(gated_);
    step.rotated = static_cast<int32_t>(rotated_);
    if (rotated_ > 0) {
      step.cos = call.data<void>(kTables);
      step.sin = call.data<void>(kTables + 1);
      step.head_dim = 2 * call.shape(kTables).back();
    }
    for (int64_t i = 0; i < layers_; ++i) {
      step.matrix[i] = Base::matrix(call, kFirst + i * Base::Matrix::kCount, &step);
      if (i > 0 && gated_) continue;
      shape.back() = step.matrix[i].outputs;
      step.matrix[i].result = call.output<void>(i, shape);
    }
    auto* const stream = static_cast<StreamHandle>(call.stream());
    const int64_t bytes = linear_scratch_bytes(step);
    linear(step, bytes > 0 ? workspace(stream, bytes) : nullptr, stream);
  }

 private:
  static constexpr int64_t kFirst = ort::LinearInput::kFirstMatrix;
  static constexpr int64_t kTables = kFirst + ort::kMostLayers * Base::Matrix::kCount;  // cos, then sin
  static_assert(std::size(Base::kInputs) == kTables + 2);
  static_assert(ort::kMostLayers == kMostMatrices);

  int64_t layers_, gated_, rotated_;
  float epsilon_;
};

}  // namespace qwen2vl::cuda
