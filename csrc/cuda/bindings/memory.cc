#include "cuda/memory.h"

#include <pybind11/numpy.h>

#include <memory>
#include <string>

#include "common/error.h"
#include "cuda/bindings/bindings.h"

namespace py = pybind11;

namespace qwen2vl::cuda {

namespace {

uintptr_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// Checks that `array` is C-contiguous and lies in [offset, offset + its size) of a buffer of `bytes`.
size_t checked_bytes(const py::array& array, size_t offset, size_t bytes) {
  if (!(array.flags() & py::array::c_style)) throw InputError("the array must be C-contiguous");
  const auto size = static_cast<size_t>(array.nbytes());
  if (offset > bytes || size > bytes - offset) {
    throw InputError("an array of " + std::to_string(size) + " bytes at byte " + std::to_string(offset) +
                     " does not fit a buffer of " + std::to_string(bytes));
  }
  return size;
}

}  // namespace

void register_memory(py::module_& m) {
  py::class_<DeviceBuffer, std::shared_ptr<DeviceBuffer>>(
      m, "DeviceBuffer", "A block of device memory at a fixed address, freed with the object.")
      .def(py::init<size_t>(), py::arg("bytes"))
      .def_property_readonly("pointer", [](const DeviceBuffer& buffer) { return address(buffer.data()); })
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

  py::class_<PinnedBuffer, std::shared_ptr<PinnedBuffer>>(
      m, "PinnedBuffer", "Host memory that the device reads and writes in place.", py::buffer_protocol())
      .def(py::init<size_t>(), py::arg("bytes"))
      .def_property_readonly(
          "pointer", [](const PinnedBuffer& buffer) { return address(buffer.device_data()); },
          "The device's address of it.")
      .def_property_readonly("bytes", &PinnedBuffer::size)
      .def_buffer([](const PinnedBuffer& buffer) {
        return py::buffer_info(buffer.as<uint8_t>(), static_cast<py::ssize_t>(buffer.size()), false);
      });

  m.def(
      "copy_on_device",
      [](uintptr_t to, uintptr_t from, size_t bytes, const Stream& stream) {
        copy_on_device(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes, stream);
      },
      py::arg("to"), py::arg("source"), py::arg("bytes"), py::arg("stream"),
      "Queues a copy between two device addresses.");
}

}  // namespace qwen2vl::cuda
