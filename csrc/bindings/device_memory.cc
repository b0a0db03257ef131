#include <memory>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/device_arguments.h"
#include "device/block_pool.h"
#include "device/device.h"

namespace py = pybind11;

namespace qwen2vl {

void register_device_memory(py::module_& m) {
  py::class_<DeviceBlock, std::shared_ptr<DeviceBlock>>(m, "DeviceBlock",
                                                        "A block of a device's memory at a fixed address.")
      .def_property_readonly("pointer", [](const DeviceBlock& block) { return address(block.as<char>()); })
      .def_property_readonly("bytes", &DeviceBlock::size)
      .def(
          "upload",
          [](const DeviceBlock& block, const py::array& array, size_t offset) {
            const size_t bytes = checked_bytes(array, offset, block.size());
            block.device()->upload(block.as<char>() + offset, array.data(), bytes);
          },
          py::arg("array"), py::arg("offset") = 0)
      .def(
          "download",
          [](const DeviceBlock& block, py::array array, size_t offset) {
            const size_t bytes = checked_bytes(array, offset, block.size());
            void* const host = array.mutable_data();
            const py::gil_scoped_release release;
            block.device()->download(host, block.as<char>() + offset, bytes);
          },
          py::arg("array"), py::arg("offset") = 0);
  py::class_<BlockPool, std::shared_ptr<BlockPool>>(
      m, "BlockPool", "Blocks for what comes and goes with a request: see csrc/device/block_pool.h.")
      .def(py::init<std::shared_ptr<Device>>(), py::arg("device"))
      .def("take", &BlockPool::take, py::arg("bytes"),
           "A DeviceBlock of at least so many bytes, which hold anything; given out again when it is gone.");
  py::class_<SharedBlock, std::shared_ptr<SharedBlock>>(m, "SharedBlock", py::buffer_protocol(),
                                                        "Host memory that the device reads in place.")
      .def_property_readonly("pointer",
                             [](const SharedBlock& block) { return address(block.on_device<char>()); })
      .def_buffer([](const SharedBlock& block) {
        return py::buffer_info(block.as<uint8_t>(), static_cast<py::ssize_t>(block.size()), false);
      });
}

}  // namespace qwen2vl
