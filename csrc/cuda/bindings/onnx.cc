#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <optional>

#include "cuda/bindings/bindings.h"
#include "cuda/onnx_engine.h"
#include "cuda/onnx_session.h"

namespace py = pybind11;

namespace qwen2vl::cuda {

void register_onnx(py::module_& m) {
  py::class_<OnnxTensor>(m, "OnnxTensor", "Memory that a session reads or writes under a name.")
      .def(py::init([](std::string name, int type, std::vector<int64_t> shape, uintptr_t pointer,
                       size_t bytes, bool on_host, bool output) {
             return OnnxTensor{
                 std::move(name), type,  std::move(shape), reinterpret_cast<void*>(pointer), bytes,
                 on_host,         output};
           }),
           py::arg("name"), py::arg("element_type"), py::arg("shape"), py::arg("pointer"), py::arg("bytes"),
           py::arg("on_host") = false, py::arg("output") = false);

  py::class_<OnnxSession::Bound, std::shared_ptr<OnnxSession::Bound>>(m, "OnnxBound",
                                                                      "One set of bound inputs and outputs.");
  py::class_<OnnxSession, std::shared_ptr<OnnxSession>>(
      m, "OnnxSession", "A graph that ONNX Runtime runs, through its C API. See csrc/cuda/onnx_session.h.")
      .def(py::init([](const py::bytes& model, const std::vector<OnnxTensor>& weights,
                       const OnnxSession::Options& entries, const std::optional<OnnxSession::Options>& cuda) {
             const std::string serialized = model;
             const py::gil_scoped_release release;
             return std::make_shared<OnnxSession>(serialized, weights, entries, cuda ? &*cuda : nullptr);
           }),
           py::arg("model"), py::arg("weights"), py::arg("entries"), py::arg("cuda") = std::nullopt)
      .def("bind", &OnnxSession::bind, py::arg("tensors"), py::arg("run_entries"))
      .def("run", &OnnxSession::run, py::arg("bound"), py::call_guard<py::gil_scoped_release>(),
           "Queues a run.");

  py::class_<OnnxEngine, DeviceEngine, std::shared_ptr<OnnxEngine>>(
      m, "OnnxEngine", "A decoder's steps in ONNX Runtime, without Python. See csrc/cuda/onnx_engine.h.")
      .def(py::init<std::shared_ptr<OnnxSession>, std::shared_ptr<OnnxSession>, OnnxEngine::Bind>(),
           py::arg("answer"), py::arg("prompt"), py::arg("bind"));
}

}  // namespace qwen2vl::cuda
