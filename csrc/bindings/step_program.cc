#include "device/step_program.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/device_arguments.h"
#include "bindings/linear_step.h"

namespace py = pybind11;

namespace qwen2vl {

void register_step_program(py::module_& m) {
  m.def("decode_attention_fits", &decode_attention_fits, py::arg("head_dim"),
        "Whether a StepProgram takes heads of this size.");
  py::class_<StepProgram, DeviceEngine, std::shared_ptr<StepProgram>>(
      m, "StepProgram", py::dynamic_attr(),
      "Decode steps by the project's own kernels: see csrc/device/step_program.h.")
      .def(py::init([](std::shared_ptr<Device> device, std::shared_ptr<DeviceCache> cache,
                       std::shared_ptr<DeviceEngine> prompts, int64_t most_rows, uintptr_t past_length,
                       bool early) {
             return std::make_shared<StepProgram>(std::move(device), std::move(cache), std::move(prompts),
                                                  most_rows, pointer<const int64_t>(past_length), early);
           }),
           py::arg("device"), py::arg("cache"), py::arg("prompts"), py::arg("most_rows"),
           py::arg("past_length"), py::arg("early") = true, py::keep_alive<1, 4>())
      .def(
          "linear",
          [](StepProgram& program, const py::dict& fields, const std::vector<py::dict>& matrices) {
            program.add(linear_step(fields, matrices));
          },
          py::arg("step"), py::arg("matrices"), "Adds layers: see Device.linear.")
      .def(
          "attention",
          [](StepProgram& program, int64_t layer, int64_t heads, uintptr_t q, uintptr_t k, uintptr_t v,
             uintptr_t output) {
            program.add_attention(layer, heads, pointer<void>(q), pointer<void>(k), pointer<void>(v),
                                  pointer<void>(output));
          },
          py::arg("layer"), py::arg("heads"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("output"))
      .def(
          "allocate",
          [](StepProgram& program, int64_t width, const std::string& dtype) {
            return address(program.allocate(width, float_type(dtype)));
          },
          py::arg("width"), py::arg("dtype"), "The address of [most_rows, width].")
      .def(
          "run", [](StepProgram& program, int64_t rows) { program.enqueue({0, rows, 1, 0, false}); },
          py::arg("rows"), "Queues the operations alone, for so many rows of the cache.");
}

}  // namespace qwen2vl
