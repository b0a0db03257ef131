#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/frames.h"
#include "image/prepare_frame.h"
#include "image/smart_resize.h"

namespace py = pybind11;

namespace qwen2vl {

namespace {

// The frame is read where it lies; the caller's array stays referenced for the length of the call.
FrameView frame_view(const py::array& frame) {
  if (!py::isinstance<py::array_t<uint8_t>>(frame) || frame.ndim() != 3 || frame.shape(2) != kChannels) {
    throw InputError("a frame must be a uint8 array [height, width, 3], not " +
                     py::repr(frame.dtype()).cast<std::string>() + " " +
                     py::repr(frame.attr("shape")).cast<std::string>());
  }
  return {static_cast<const uint8_t*>(frame.data()),
          {frame.shape(0), frame.shape(1)},
          frame.strides(0),
          frame.strides(1),
          frame.strides(2)};
}

void write_frame(const py::array& frame, py::array_t<float>& patches, int64_t frame_index, int64_t copies,
                 int64_t resized_height, int64_t resized_width, const py::object& table, int64_t patch_size,
                 int64_t temporal_patch_size, int64_t merge_size, bool vertical_first,
                 std::optional<py::array_t<uint8_t>> pixels) {
  const FrameView view = frame_view(frame);
  const FloatArray values = value_table(table);
  const PatchLayout layout{patch_size, temporal_patch_size, merge_size};
  check_layout(layout);
  const int64_t grid = (resized_height / patch_size) * (resized_width / patch_size);
  if (!(patches.flags() & py::array::c_style) || patches.ndim() != 3 || patches.shape(1) != grid ||
      patches.shape(2) != layout.patch_values() || frame_index < 0 ||
      frame_index / temporal_patch_size >= patches.shape(0)) {
    throw InputError("patches must be a C-contiguous float32 array [t, " + std::to_string(grid) + ", " +
                     std::to_string(layout.patch_values()) + "] with room for frame " +
                     std::to_string(frame_index));
  }
  uint8_t* pixel_data = nullptr;
  if (pixels) {
    if (!(pixels->flags() & py::array::c_style) || pixels->ndim() != 3 ||
        pixels->shape(0) != resized_height || pixels->shape(1) != resized_width ||
        pixels->shape(2) != kChannels) {
      throw InputError("pixels must be a C-contiguous uint8 array [resized_height, resized_width, 3]");
    }
    pixel_data = pixels->mutable_data();
  }
  const int64_t slot = frame_index % temporal_patch_size;
  float* out = patches.mutable_data() + frame_index / temporal_patch_size * grid * layout.patch_values();
  const py::gil_scoped_release release;
  prepare_frame(view, {resized_height, resized_width}, pass_order(vertical_first), layout, values.data(),
                slot, slot + copies, out, pixel_data);
}

py::array_t<uint8_t> resize_bicubic(const py::array& frame, int64_t height, int64_t width,
                                    bool vertical_first) {
  const FrameView view = frame_view(frame);
  if (height < 1 || width < 1) throw InputError("height and width must be at least 1");
  py::array_t<uint8_t> out({height, width, kChannels});
  uint8_t* data = out.mutable_data();
  const py::gil_scoped_release release;
  resize_frame(view, {height, width}, pass_order(vertical_first), data);
  return out;
}

}  // namespace

void register_image(py::module_& m) {
  m.def(
      "smart_resize",
      [](int64_t height, int64_t width, int64_t factor, double min_pixels, double max_pixels) {
        const ImageSize size = smart_resize({height, width}, factor, min_pixels, max_pixels);
        return py::make_tuple(size.height, size.width);
      },
      py::arg("height"), py::arg("width"), py::arg("factor"), py::arg("min_pixels"), py::arg("max_pixels"),
      "The (height, width) in pixels to which a picture is resized: multiples of factor, within the limits.");
  m.def("resize_bicubic", &resize_bicubic, py::arg("frame"), py::arg("height"), py::arg("width"),
        py::arg("vertical_first"),
        "uint8 [h, w, 3] of any strides -> uint8 [height, width, 3], equal to Pillow's BICUBIC resize. "
        "vertical_first: where Pillow starts with the vertical pass; see csrc/image/resize.h.");
  m.def(
      "write_frame", &write_frame, py::arg("frame"), py::arg("patches").noconvert(), py::arg("frame_index"),
      py::arg("copies"), py::arg("resized_height"), py::arg("resized_width"), py::arg("table"),
      py::arg("patch_size"), py::arg("temporal_patch_size"), py::arg("merge_size"), py::arg("vertical_first"),
      py::arg("pixels").noconvert() = py::none(),
      "Resizes one frame (uint8 [h, w, 3], any strides) and writes it `copies` times, from frame frame_index "
      "on, into patches, float32 [t, grid_h * grid_w, 3 * temporal_patch_size * patch_size^2] in merge "
      "order. The copies stay inside one temporal patch. table: float32 [3, 256], what each byte of each "
      "channel becomes. pixels, if given, receives the resized frame, uint8 [resized_height, resized_width, "
      "3].");
}

}  // namespace qwen2vl
