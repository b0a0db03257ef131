#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "common/scale_block.h"
#include "embedding/embedding_table.h"

namespace py = pybind11;

namespace qwen2vl {

void register_embedding(py::module_& m) {
  m.attr("BLOCK") = kScaleBlock;
  py::class_<EmbeddingTable, std::shared_ptr<EmbeddingTable>>(
      m, "EmbeddingTable",
      "The token embedding table [rows, width], read from its file row by row, as float32.")
      .def(py::init([](const std::string& path, int64_t rows, int64_t width, const std::string& dtype) {
             return std::make_shared<EmbeddingTable>(path, rows, width, table_type_from_name(dtype));
           }),
           py::arg("path"), py::arg("rows"), py::arg("width"), py::arg("dtype"),
           "dtype: float32, bfloat16, float16, or uint8 (codes with a scale and a zero point a block of "
           "BLOCK).")
      .def_property_readonly("rows", &EmbeddingTable::rows)
      .def_property_readonly("width", &EmbeddingTable::width)
      .def(
          "gather",
          [](const EmbeddingTable& table, const py::object& ids) {
            const auto values = integer_vector<int32_t>(ids, "ids");
            py::array_t<float> output({static_cast<int64_t>(values.size()), table.width()});
            float* data = output.mutable_data();
            const py::gil_scoped_release release;
            table.gather(values.data(), static_cast<int64_t>(values.size()), data);
            return output;
          },
          py::arg("ids"), "float32 [len(ids), width].");
}

}  // namespace qwen2vl
