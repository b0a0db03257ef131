#include "device/device.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/device_arguments.h"
#include "bindings/linear_step.h"
#include "device/host_device.h"

namespace py = pybind11;

namespace qwen2vl {

void register_device(py::module_& m) {
  m.attr("FEW_LINEAR_ROWS") = kFewLinearRows;
  py::class_<Device, std::shared_ptr<Device>>(
      m, "Device", "Where a decoder's data lie and its kernels run. Pointers are integers, the device's own.")
      .def(
          "allocate",
          [](const std::shared_ptr<Device>& device, size_t bytes) {
            return std::make_shared<DeviceBlock>(device, bytes);
          },
          py::arg("bytes"), "A zeroed DeviceBlock.")
      .def(
          "allocate_shared",
          [](const std::shared_ptr<Device>& device, size_t bytes) {
            return std::make_shared<SharedBlock>(device, bytes);
          },
          py::arg("bytes"), "A zeroed SharedBlock.")
      .def("synchronize", &Device::synchronize, py::call_guard<py::gil_scoped_release>())
      .def(
          "upload",
          [](Device& device, uintptr_t to, const py::array& array) {
            const size_t bytes = checked_bytes(array, 0, static_cast<size_t>(array.nbytes()));
            device.upload(pointer<void>(to), array.data(), bytes);
          },
          py::arg("pointer"), py::arg("array"),
          "Queues a copy of a C-contiguous array to a device address; the array may change afterwards.")
      .def(
          "transpose",
          [](Device& device, uintptr_t from, uintptr_t to, int64_t rows, int64_t columns, int64_t item) {
            if (item != 1 && item != 2 && item != 4) throw InputError("items of 1, 2 or 4 bytes are turned");
            device.transpose({pointer<const void>(from), pointer<void>(to), rows, columns, item});
          },
          py::arg("from_pointer"), py::arg("to_pointer"), py::arg("rows"), py::arg("columns"),
          py::arg("item"),
          "Queues [rows, columns] at one device address to [columns, rows] at another; `item` is in bytes.")
      .def(
          "download",
          [](Device& device, py::array array, uintptr_t from) {
            const size_t bytes = checked_bytes(array, 0, static_cast<size_t>(array.nbytes()));
            void* const host = array.mutable_data();
            const py::gil_scoped_release release;
            device.download(host, pointer<const void>(from), bytes);
          },
          py::arg("array"), py::arg("pointer"),
          "Copies from a device address into a writable C-contiguous array, and waits for it.")
      .def(
          "rope_rows",
          [](Device& device, uintptr_t inv_freq, uintptr_t axis, int64_t width, uintptr_t positions,
             int64_t stride, int64_t tokens, const std::string& dtype, uintptr_t cos, uintptr_t sin) {
            device.rope_rows({pointer<const float>(inv_freq), pointer<const uint8_t>(axis), width,
                              pointer<const int64_t>(positions), stride, tokens, float_type(dtype),
                              pointer<void>(cos), pointer<void>(sin)});
          },
          py::arg("inv_freq"), py::arg("axis"), py::arg("width"), py::arg("positions"), py::arg("stride"),
          py::arg("tokens"), py::arg("dtype"), py::arg("cos"), py::arg("sin"), "See csrc/rope/rope_kernel.h.")
      .def(
          "gather_embeddings",
          [](Device& device, uintptr_t table, uintptr_t scale, uintptr_t zero_point, int64_t rows,
             int64_t width, int64_t block, const std::string& table_dtype, uintptr_t ids,
             uintptr_t visual_rows, int64_t count, const std::string& dtype, uintptr_t output) {
            device.gather_embeddings(
                {{pointer<const void>(table), pointer<const float>(scale), pointer<const uint8_t>(zero_point),
                  rows, width, block, table_type_from_name(table_dtype)},
                 pointer<const int32_t>(ids),
                 pointer<const float* const>(visual_rows),
                 count,
                 float_type(dtype),
                 pointer<void>(output)});
          },
          py::arg("table"), py::arg("scale"), py::arg("zero_point"), py::arg("rows"), py::arg("width"),
          py::arg("block"), py::arg("table_dtype"), py::arg("ids"), py::arg("visual_rows"), py::arg("count"),
          py::arg("dtype"), py::arg("output"), "See csrc/embedding/gather_kernel.h.")
      .def(
          "linear",
          [](const std::shared_ptr<Device>& device, const py::dict& fields,
             const std::vector<py::dict>& matrices) {
            const LinearStep step = linear_step(fields, matrices);
            const DeviceBlock scratch(device, linear_scratch_bytes(step));
            device->linear(step, scratch.as<void>());
            device->synchronize();  // before the scratch memory goes
          },
          py::arg("step"), py::arg("matrices"),
          "See csrc/linear/device_linear.h: the fields of a LinearStep and of its matrices by name.");
  py::class_<HostDevice, Device, std::shared_ptr<HostDevice>>(m, "HostDevice", "The CPU as a device.")
      .def(py::init<>());
}

}  // namespace qwen2vl
