#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/sampled_token.h"
#include "sampling/philox.h"
#include "sampling/sampler.h"

namespace py = pybind11;

namespace qwen2vl {

void register_sampling(py::module_& m) {
  py::class_<SamplingOptions>(m, "SamplingOptions", "How the next token is chosen; the defaults are greedy.")
      .def(py::init([](double temperature, int64_t top_k, double top_p, double min_p,
                       double repetition_penalty, double presence_penalty, double frequency_penalty,
                       uint64_t seed, int64_t logprobs) {
             const SamplingOptions options{
                 temperature,       top_k, top_p,   min_p, repetition_penalty, presence_penalty,
                 frequency_penalty, seed,  logprobs};
             options.validate();
             return options;
           }),
           py::kw_only(), py::arg("temperature") = 0.0, py::arg("top_k") = 0, py::arg("top_p") = 1.0,
           py::arg("min_p") = 0.0, py::arg("repetition_penalty") = 1.0, py::arg("presence_penalty") = 0.0,
           py::arg("frequency_penalty") = 0.0, py::arg("seed") = 0, py::arg("logprobs") = -1)
      .def_readonly("temperature", &SamplingOptions::temperature)
      .def_readonly("top_k", &SamplingOptions::top_k)
      .def_readonly("top_p", &SamplingOptions::top_p)
      .def_readonly("min_p", &SamplingOptions::min_p)
      .def_readonly("repetition_penalty", &SamplingOptions::repetition_penalty)
      .def_readonly("presence_penalty", &SamplingOptions::presence_penalty)
      .def_readonly("frequency_penalty", &SamplingOptions::frequency_penalty)
      .def_readonly("seed", &SamplingOptions::seed)
      .def_readonly("logprobs", &SamplingOptions::logprobs);

  py::class_<Sampler>(m, "Sampler", "Chooses the tokens of one answer, one after another.")
      .def(py::init([](const SamplingOptions& options, int64_t vocab, const py::object& prompt) {
             const auto ids = integer_vector<int32_t>(prompt, "prompt");
             return Sampler(options, vocab, ids.data(), static_cast<int64_t>(ids.size()));
           }),
           py::arg("options"), py::arg("vocab"), py::arg("prompt") = py::tuple())
      .def(
          "sample",
          [](Sampler& sampler, const py::object& logits) {
            const FloatArray array = float_array(logits, 1, "logits");
            if (array.size() != sampler.vocab()) {
              throw InputError("logits have " + std::to_string(array.size()) +
                               " values for a vocabulary of " + std::to_string(sampler.vocab()));
            }
            return token_tuple(sampler.sample(array.data()), sampler.options().logprobs >= 0);
          },
          py::arg("logits"),
          "The next token for logits float32 [vocab]: (id, logprob or None, ((id, logprob), ...)).");

  m.def(
      "philox4x32",
      [](std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) { return philox4x32(counter, key); },
      py::arg("counter"), py::arg("key"), "Philox4x32-10.");
  m.def("uniform_draw", &uniform_draw, py::arg("seed"), py::arg("step"),
        "The uniform number in [0, 1) that the sampler uses at this step.");
}

}  // namespace qwen2vl
