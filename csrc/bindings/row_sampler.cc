#include "device/row_sampler.h"

#include <memory>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/sampled_token.h"

namespace py = pybind11;

namespace qwen2vl {

void register_row_sampler(py::module_& m) {
  py::class_<RowSampler>(m, "RowSampler", "A device's sampler for one answer, with Sampler's own interface.")
      .def(py::init([](std::shared_ptr<Device> device, const SamplingOptions& options, int64_t vocab,
                       const py::object& prompt) {
             return RowSampler(std::move(device), options, vocab, integer_vector<int32_t>(prompt, "prompt"));
           }),
           py::arg("device"), py::arg("options"), py::arg("vocab"), py::arg("prompt") = py::tuple())
      .def(
          "sample",
          [](RowSampler& sampler, const py::object& logits) {
            const FloatArray array = float_array(logits, 1, "logits");
            return token_tuple(sampler.sample(array.data(), array.size()), sampler.logprobs() >= 0);
          },
          py::arg("logits"), "The next token for logits float32 [vocab], as Sampler.sample gives it.");
}

}  // namespace qwen2vl
