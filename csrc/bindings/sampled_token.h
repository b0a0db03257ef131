#pragma once

#include <pybind11/pybind11.h>

#include "sampling/sampler.h"

namespace qwen2vl {

// (id, logprob, ((id, logprob), ...)), the alternatives best first; (id, None, ()) without log-probabilities.
inline pybind11::tuple token_tuple(const SampledToken& token, bool has_logprobs) {
  namespace py = pybind11;
  if (!has_logprobs) return py::make_tuple(token.id, py::none(), py::tuple());
  py::tuple alternatives(token.alternatives.size());
  for (size_t i = 0; i < token.alternatives.size(); ++i) {
    alternatives[i] = py::make_tuple(token.alternatives[i].id, token.alternatives[i].logprob);
  }
  return py::make_tuple(token.id, token.logprob, alternatives);
}

}  // namespace qwen2vl
