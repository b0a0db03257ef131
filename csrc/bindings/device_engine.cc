#include "device/device_engine.h"

#include <memory>
#include <string>

#include "bindings/bindings.h"
#include "common/error.h"

namespace py = pybind11;

namespace qwen2vl {

namespace {

// An engine whose enqueue() is a Python method: takes the GIL for the call.
class PythonEngine : public DeviceEngine {
 public:
  void enqueue(const EngineStep& step) override {
    const py::gil_scoped_acquire acquire;
    const py::function method = py::get_override(static_cast<const DeviceEngine*>(this), "enqueue");
    if (!method) throw Error("an engine must define enqueue(self, first_row, rows, tokens, longest, prompt)");
    try {
      method(step.first_row, step.rows, step.tokens, step.longest, step.prompt);
    } catch (const py::error_already_set& error) {
      // The compiled loop has to tell what the engine failed at from an interrupt.
      if (!error.matches(py::module_::import("qwen2vl_rt.errors").attr("BackendError"))) throw;
      throw DeviceError(py::str(error.value()).cast<std::string>());
    }
  }
  bool recordable() const override {
    const py::gil_scoped_acquire acquire;
    const py::function method = py::get_override(static_cast<const DeviceEngine*>(this), "recordable");
    return method && py::bool_(method());
  }
};

}  // namespace

void register_device_engine(py::module_& m) {
  m.attr("MOST_PROMPT_SHAPES") = kMostPromptShapes;
  py::class_<DeviceEngine, PythonEngine, std::shared_ptr<DeviceEngine>>(
      m, "DeviceEngine",
      "An inference engine on device memory; subclasses define enqueue(first_row, rows, tokens, longest, "
      "prompt), which queues the step on the device's stream, and may define recordable().")
      .def(py::init<>());
}

}  // namespace qwen2vl
