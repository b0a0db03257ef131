#include "cuda/device.h"

#include <memory>

#include "cuda/bindings/bindings.h"
#include "cuda/cuda_device.h"
#include "cuda/on_device.h"
#include "cuda/stream.h"

namespace py = pybind11;

namespace qwen2vl::cuda {

void register_device(py::module_& m) {
  m.attr("architectures") = QWEN2VL_CUDA_ARCHITECTURES;
  m.def("toolkit_version", &toolkit_version, "The CUDA toolkit of the build: 13000 for 13.0.");
  m.def(
      "device_status",
      [] {
        const DeviceStatus status = device_status();
        return py::make_tuple(status.devices, status.reason);
      },
      "(number of GPUs, why there are none or ''). Safe on a machine without a driver.");

  py::class_<DeviceInfo>(m, "DeviceInfo")
      .def_readonly("name", &DeviceInfo::name)
      .def_readonly("compute_capability", &DeviceInfo::compute_capability, "90 for 9.0")
      .def_readonly("total_bytes", &DeviceInfo::total_bytes)
      .def_readonly("free_bytes", &DeviceInfo::free_bytes, "When the object was made.")
      .def_readonly("integrated", &DeviceInfo::integrated, "Shares the system's memory.")
      .def_readonly("driver_version", &DeviceInfo::driver_version, "CUDA version of the driver: 13000");
  m.def("device_info", &device_info, py::arg("device") = 0);
  m.def(
      "device_of", [](uintptr_t pointer) { return device_of(reinterpret_cast<const void*>(pointer)); },
      py::arg("pointer"), "The number of the GPU whose memory an address is in; -1 for the host's.");

  py::class_<Stream, std::shared_ptr<Stream>>(m, "Stream", "A queue of device work, in order.")
      .def(py::init<int>(), py::arg("device") = 0)
      .def_property_readonly(
          "handle", [](const Stream& stream) { return reinterpret_cast<uintptr_t>(stream.handle()); },
          "cudaStream_t as an integer, for engines.")
      .def_property_readonly("device", &Stream::device)
      .def("synchronize", &Stream::synchronize, py::call_guard<py::gil_scoped_release>());

  m.def("synchronize_stream", &synchronize_stream, py::arg("handle"), py::arg("device"),
        py::call_guard<py::gil_scoped_release>(),
        "Waits for somebody else's cudaStream_t; 1 and 2 are the GPU's default streams, as in "
        "__cuda_array_interface__.");

  struct Entered {
    int device;
    std::unique_ptr<OnDevice> on;
  };
  py::class_<Entered>(m, "OnDevice", "While entered, the thread works on a GPU; then on its own again.")
      .def(py::init([](int device) { return Entered{device, nullptr}; }), py::arg("device"))
      .def("__enter__", [](Entered& self) { self.on = std::make_unique<OnDevice>(self.device); })
      .def("__exit__", [](Entered& self, const py::args&) { self.on.reset(); });

  py::class_<CudaDevice, Device, std::shared_ptr<CudaDevice>>(
      m, "CudaDevice", "A GPU and the one stream on which everything of a session runs.")
      .def(py::init<std::shared_ptr<Stream>>(), py::arg("stream"))
      .def_property_readonly("stream", &CudaDevice::stream);

  py::class_<Event>(m, "Event", "A mark in a stream.")
      .def(py::init<bool>(), py::arg("timing") = false)
      .def("record", &Event::record, py::arg("stream"))
      .def("synchronize", &Event::synchronize, py::call_guard<py::gil_scoped_release>())
      .def("milliseconds_since", &Event::milliseconds_since, py::arg("start"));

  py::class_<Graph>(m, "Graph", "Work recorded once (begin .. end) and launched as a whole.")
      .def(py::init<>())
      .def("begin", &Graph::begin, py::arg("stream"))
      .def("end", &Graph::end)
      .def("abandon", &Graph::abandon, "Forgets a recording that went wrong.")
      .def_property_readonly("ready", &Graph::ready)
      .def("launch", &Graph::launch, py::arg("stream"));
}

}  // namespace qwen2vl::cuda
