#include "cuda/memory.h"

#include <pybind11/numpy.h>

#include <memory>

#include "bindings/arrays.h"
#include "cuda/bindings/bindings.h"

namespace py = pybind11;

namespace qwen2vl::cuda {

void register_memory(py::module_& m) {
  py::class_<DeviceBuffer, std::shared_ptr<DeviceBuffer>>(
      m, "DeviceBuffer", "A block of device memory at a fixed address, freed with the object.")
      .def(py::init<size_t>(), py::arg("bytes"))
      .def_property_readonly(
          "pointer", [](const DeviceBuffer& buffer) { return reinterpret_cast<uintptr_t>(buffer.data()); })
      .def_property_readonly("bytes", &DeviceBuffer::size)
      .def(
          "upload",
          [](const DeviceBuffer& buffer, const py::array& array, const Stream& stream, size_t offset) {
            const size_t bytes = checked_bytes(array, offset, buffer.size());
            copy_to_device(buffer.as<char>() + offset, array.data(), bytes, stream);
          },
          py::arg("array"), py::arg("stream"), py::arg("offset") = 0,
          "Queues a copy of a C-contiguous numpy array to byte `offset`; the array may change afterwards.")
      .def(
          "download",
          [](const DeviceBuffer& buffer, py::array array, const Stream& stream, size_t offset) {
            const size_t bytes = checked_bytes(array, offset, buffer.size());
            void* const host = array.mutable_data();
            const py::gil_scoped_release release;
            copy_to_host(host, buffer.as<char>() + offset, bytes, stream);
            stream.synchronize();
          },
          py::arg("array"), py::arg("stream"), py::arg("offset") = 0,
          "Copies from byte `offset` into a writable C-contiguous numpy array, and waits for it.")
      .def(
          "zero",
          [](const DeviceBuffer& buffer, const Stream& stream) {
            fill_zero(buffer.data(), buffer.size(), stream);
          },
          py::arg("stream"));

  m.def(
      "copy_on_device",
      [](uintptr_t to, uintptr_t from, size_t bytes, const Stream& stream) {
        copy_on_device(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes, stream);
      },
      py::arg("to"), py::arg("source"), py::arg("bytes"), py::arg("stream"),
      "Queues a copy between two device addresses.");
}

}  // namespace qwen2vl::cuda
