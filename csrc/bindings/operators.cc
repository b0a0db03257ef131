#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "common/instruction_set.h"
#include "common/multiply_rate.h"
#include "onnxruntime/attention_operators.h"
#include "onnxruntime/linear_inputs.h"
#include "onnxruntime/linear_operator.h"
#include "onnxruntime/quantize_operator.h"
#include "onnxruntime/scale_operator.h"

// Operators of our own inside ONNX Runtime's graphs. The engine opens this module as a library of operators
// and calls RegisterCustomOps.
namespace qwen2vl {

void register_operators(pybind11::module_& m) {
  m.attr("OPERATOR_DOMAIN") = ort::kDomain;
  m.attr("MOST_ATTENTION_DIM") = kMostAttentionDim;
  m.attr("FEW_ATTENDING_TOKENS") = kFewAttendingTokens;
  m.attr("LINEAR_OTHER") = int64_t{ort::LinearInput::kOther};
  m.attr("LINEAR_NORM_WEIGHT") = int64_t{ort::LinearInput::kNormWeight};
  m.attr("LINEAR_NORM_BIAS") = int64_t{ort::LinearInput::kNormBias};
  m.attr("LINEAR_ADDED") = int64_t{ort::LinearInput::kAdded};
  m.attr("LINEAR_FIRST_MATRIX") = int64_t{ort::LinearInput::kFirstMatrix};
  m.attr("MOST_LINEAR_LAYERS") = ort::kMostLayers;
  m.attr("PLAIN_MATRIX_INPUTS") = int64_t{ort::PlainMatrix::kCount};
  m.attr("CHANNEL_MATRIX_INPUTS") = int64_t{ort::ChannelMatrix::kCount};
  m.attr("BLOCK_MATRIX_INPUTS") = int64_t{ort::BlockMatrix::kCount};
  m.def("limit_instruction_set", &limit_instruction_set, pybind11::arg("name"),
        "The largest instruction set that kernels loaded from now on may use; '' takes what "
        "QWEN2VL_INSTRUCTION_SET names, or all.");
  m.def("instruction_sets", &instruction_sets, "The instruction sets that may be used, by name.");
  m.def("has_integer_linear", &IntegerLinear::supported,
        "Whether the operators BlockLinear and TokenLinear run on this CPU, and may.");
  m.def("overflows_int8", &overflows_int8,
        "Whether ONNX Runtime's products of uint8 and int8 would overflow on this CPU, an x86 one without "
        "VNNI, "
        "and it takes slower ones instead.");
  m.def("has_int8_tiles", &has_int8_tiles, "Whether the CPU multiplies int8 tiles (AMX).");
  m.def(
      "multiply_rate",
      [](bool integers, int threads) {
        return multiply_rate(integers ? Factors::kUint8Int8 : Factors::kFloat32, threads);
      },
      pybind11::arg("integers"), pybind11::arg("threads"),
      pybind11::call_guard<pybind11::gil_scoped_release>(),
      "Multiplications and additions a second that the CPU's instruction for products of float32, or of "
      "uint8 and int8, does in registers on so many threads; 0 where it is not known.");
}

}  // namespace qwen2vl

extern "C" __attribute__((visibility("default"))) qwen2vl::ort::Status* RegisterCustomOps(
    qwen2vl::ort::SessionOptions* options, const qwen2vl::ort::ApiBase* base) {
  using namespace qwen2vl;
  using namespace qwen2vl::ort;
  const Api* api = base->get_api(kApiVersion);
  if (api == nullptr)
    return nullptr;  // older than any that is supported: it will miss the operators and say so
  static Domain* domain = nullptr;
  return add_operators(
      *api, options,
      {&Operator<PictureAttentionOperator>::definition(), &Operator<CachedAttentionOperator>::definition(),
       &Operator<QuantizeTokensOperator>::definition(), &Operator<BlockLinearOperator>::definition(),
       &Operator<TokenLinearOperator>::definition(), &Operator<ScaleTokensOperator>::definition()},
      &domain);
}
