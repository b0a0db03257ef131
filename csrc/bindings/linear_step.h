#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "bindings/device_arguments.h"
#include "common/error.h"
#include "linear/device_linear.h"

namespace qwen2vl {

// A LinearStep's fields by name; what is left out is zero.
inline LinearStep linear_step(const pybind11::dict& fields, const std::vector<pybind11::dict>& matrices) {
  static const std::map<std::string, MatrixForm> kForms = {
      {"plain", MatrixForm::kPlain}, {"blocks4", MatrixForm::kBlocks4}, {"blocks8", MatrixForm::kBlocks8}};
  const auto number = [](const pybind11::dict& from, const char* name) {
    return from.contains(name) ? from[name].cast<int64_t>() : 0;
  };
  const auto memory = [&](const pybind11::dict& from, const char* name) {
    return pointer<void>(static_cast<uintptr_t>(number(from, name)));
  };
  if (matrices.empty() || matrices.size() > kMostMatrices) throw InputError("a step has 1 to 3 matrices");
  LinearStep step{};
  step.type = float_type(fields["dtype"].cast<std::string>());
  step.result_type =
      fields.contains("result_dtype") ? float_type(fields["result_dtype"].cast<std::string>()) : step.type;
  step.form = kForms.at(fields["form"].cast<std::string>());
  step.rows = number(fields, "rows");
  step.inputs = number(fields, "inputs");
  step.block = number(fields, "block");
  step.x = memory(fields, "x");
  step.norm = memory(fields, "norm");
  step.epsilon = fields.contains("epsilon") ? fields["epsilon"].cast<float>() : 0.0f;
  step.added = memory(fields, "added");
  step.matrices = static_cast<int32_t>(matrices.size());
  step.gated = static_cast<int32_t>(number(fields, "gated"));
  step.rotated = static_cast<int32_t>(number(fields, "rotated"));
  step.head_dim = number(fields, "head_dim");
  step.cos = memory(fields, "cos");
  step.sin = memory(fields, "sin");
  for (size_t i = 0; i < matrices.size(); ++i) {
    step.matrix[i] = {memory(matrices[i], "weights"),
                      memory(matrices[i], "scales"),
                      static_cast<const uint8_t*>(memory(matrices[i], "zero_points")),
                      memory(matrices[i], "bias"),
                      number(matrices[i], "outputs"),
                      memory(matrices[i], "result")};
  }
  return step;
}

}  // namespace qwen2vl
