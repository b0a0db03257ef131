#include "device/frame_preparer.h"

#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/device_arguments.h"
#include "bindings/frames.h"

namespace py = pybind11;

namespace qwen2vl {

void register_frame_preparer(py::module_& m) {
  py::class_<FramePreparer, std::shared_ptr<FramePreparer>>(
      m, "FramePreparer", "Frames in a device's memory to patches there: see csrc/device/frame_preparer.h.")
      .def(py::init([](std::shared_ptr<Device> device, const py::object& table, int64_t patch_size,
                       int64_t temporal_patch_size, int64_t merge_size, bool vertical_first) {
             return std::make_shared<FramePreparer>(std::move(device), value_table(table).data(),
                                                    PatchLayout{patch_size, temporal_patch_size, merge_size},
                                                    pass_order(vertical_first));
           }),
           py::arg("device"), py::arg("table"), py::arg("patch_size"), py::arg("temporal_patch_size"),
           py::arg("merge_size"), py::arg("vertical_first"))
      .def(
          "prepare",
          [](FramePreparer& preparer, uintptr_t frame, std::array<int64_t, 2> size,
             std::array<int64_t, 3> strides, std::array<int64_t, 2> resized, int64_t slot, int64_t copies,
             uintptr_t patches, const std::string& dtype, uintptr_t digest) {
            const FrameView view{
                pointer<const uint8_t>(frame), {size[0], size[1]}, strides[0], strides[1], strides[2]};
            preparer.prepare(view, {resized[0], resized[1]}, slot, slot + copies, float_type(dtype),
                             pointer<void>(patches), pointer<uint64_t>(digest));
          },
          py::arg("frame"), py::arg("size"), py::arg("strides"), py::arg("resized"), py::arg("slot"),
          py::arg("copies"), py::arg("patches"), py::arg("dtype"), py::arg("digest") = 0,
          "Queues one frame, uint8 [size, 3] at a device address with strides in bytes, into the temporal "
          "patch at `patches`: slots [slot, slot + copies). digest: null or uint64 [4], which become its "
          "hash.");
}

}  // namespace qwen2vl
