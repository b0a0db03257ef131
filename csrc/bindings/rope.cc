#include <pybind11/stl.h>

#include <array>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "rope/mrope_positions.h"
#include "rope/rope_table.h"
#include "rope/vision_rope_table.h"
#include "rope/visual_blocks.h"

namespace py = pybind11;

namespace qwen2vl {

namespace {

py::tuple bind_mrope_positions(const py::object& token_ids, const py::object& grids, int32_t image_pad,
                               int32_t video_pad, int32_t merge_size) {
  const auto ids = integer_vector<int32_t>(token_ids, "token_ids");
  const auto grid_values = grid_vector(grids);
  const auto tokens = static_cast<int64_t>(ids.size());
  const auto blocks = find_visual_blocks(ids.data(), tokens, grid_values.data(), grid_values.size() / 3,
                                         VisualTokens{image_pad, video_pad, merge_size});
  py::array_t<int64_t> positions({int64_t{3}, tokens});
  const int64_t delta = mrope_positions(blocks, tokens, positions.mutable_data());
  return py::make_tuple(positions, delta);
}

py::tuple bind_rope_table(const py::object& positions, int64_t head_dim, double theta,
                          const std::array<int64_t, 3>& sections) {
  const RopeTable table(head_dim, theta, sections);
  const auto array = as_array<py::array>(positions, "positions must be an array of integers [3, T]");
  require_dimensions(array, 2, "positions");
  if (array.shape(0) != 3) throw InputError("positions must have the shape [3, T]");
  const int64_t tokens = array.shape(1);
  const auto values = integer_vector<int64_t>(array, "positions", 2);
  py::array_t<float> cos({tokens, table.width()}), sin({tokens, table.width()});
  table.fill(values.data(), tokens, 0, tokens, cos.mutable_data(), sin.mutable_data());
  return py::make_tuple(cos, sin);
}

py::tuple bind_vision_rope_table(int64_t grid_h, int64_t grid_w, int64_t head_dim, int64_t merge_size,
                                 double theta) {
  check_vision_grid(grid_h, grid_w, head_dim, merge_size);
  py::array_t<float> cos({grid_h * grid_w, head_dim / 2}), sin({grid_h * grid_w, head_dim / 2});
  vision_rope_table(grid_h, grid_w, head_dim, merge_size, theta, cos.mutable_data(), sin.mutable_data());
  return py::make_tuple(cos, sin);
}

}  // namespace

void register_rope(py::module_& m) {
  py::class_<RopeTable>(m, "RopeTable", "The decoder's rotary frequencies and the axis that turns each.")
      .def(py::init<int64_t, double, const std::array<int64_t, 3>&>(), py::arg("head_dim"), py::arg("theta"),
           py::arg("sections"))
      .def_property_readonly("inverse_frequencies", &RopeTable::inv_freq, "[head_dim / 2]")
      .def_property_readonly("axes", [](const RopeTable& table) {
        return std::vector<int>(table.axes().begin(), table.axes().end());
      });
  m.def(
      "mrope_positions", &bind_mrope_positions, py::arg("token_ids"), py::arg("grids"), py::arg("image_pad"),
      py::arg("video_pad"), py::arg("merge_size") = 2,
      "M-RoPE positions of a prompt: (positions int64 [3, T], rope delta). grids [n, 3]: t, h, w in patches "
      "of pictures and videos in order of appearance.");
  m.def("rope_table", &bind_rope_table, py::arg("positions"), py::arg("head_dim"), py::arg("theta"),
        py::arg("sections"),
        "cos, sin float32 [T, head_dim / 2] of positions int64 [3, T]; section j of the frequencies uses "
        "axis j.");
  m.def("vision_rope_table", &bind_vision_rope_table, py::arg("grid_h"), py::arg("grid_w"),
        py::arg("head_dim"), py::arg("merge_size") = 2, py::arg("theta") = 10000.0,
        "cos, sin float32 [grid_h * grid_w, head_dim / 2] for the vision tower, in merge order.");
}

}  // namespace qwen2vl
