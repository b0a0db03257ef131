#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "cache/kv_cache.h"

namespace py = pybind11;

namespace qwen2vl {

namespace {

py::array_t<float> view_tensor(const py::object& self, const float* data) {
  const auto& cache = self.cast<const KVCache&>();
  return view_of(data, {cache.rows(), cache.kv_heads(), cache.capacity(), cache.head_dim()}, self);
}

}  // namespace

void register_cache(py::module_& m) {
  py::class_<KVCache, std::shared_ptr<KVCache>>(
      m, "KVCache", "Keys and values of `rows` sequences, float32, allocated once.")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, int64_t>(), py::arg("layers"), py::arg("rows"),
           py::arg("kv_heads"), py::arg("capacity"), py::arg("head_dim"))
      .def_property_readonly("layers", &KVCache::layers)
      .def_property_readonly("rows", &KVCache::rows)
      .def_property_readonly("kv_heads", &KVCache::kv_heads)
      .def_property_readonly("capacity", &KVCache::capacity)
      .def_property_readonly("head_dim", &KVCache::head_dim)
      .def_property_readonly("bytes", &KVCache::bytes,
                             "Address space reserved; committed as positions are written.")
      .def(
          "keys",
          [](const py::object& self, int64_t layer) {
            return view_tensor(self, self.cast<const KVCache&>().keys(layer));
          },
          py::arg("layer"), "Writable view [rows, kv_heads, capacity, head_dim]; keeps the cache alive.")
      .def(
          "values",
          [](const py::object& self, int64_t layer) {
            return view_tensor(self, self.cast<const KVCache&>().values(layer));
          },
          py::arg("layer"), "Writable view [rows, kv_heads, capacity, head_dim]; keeps the cache alive.")
      .def("length", &KVCache::length, py::arg("row"), "How many positions the row holds.")
      .def(
          "append",
          [](KVCache& cache, int64_t row, const py::object& identities) {
            const auto values = integer_vector<uint64_t>(identities, "identities");
            const KVCache::Lease lease(cache);
            cache.append(row, values.data(), static_cast<int64_t>(values.size()));
          },
          py::arg("row"), py::arg("identities"),
          "Counts len(identities) more positions of the row as written. The generator does this by itself.")
      .def(
          "truncate",
          [](KVCache& cache, int64_t row, int64_t length) {
            const KVCache::Lease lease(cache);
            cache.truncate(row, length);
          },
          py::arg("row"), py::arg("length"), "Cuts the row to its first `length` positions.")
      .def(
          "copy_row",
          [](KVCache& cache, int64_t source, int64_t destination) {
            const KVCache::Lease lease(cache);
            cache.copy_row(source, destination);
          },
          py::arg("source"), py::arg("destination"), "Forks a row: both hold the same positions afterwards.")
      .def(
          "move_row",
          [](KVCache& cache, int64_t source, int64_t destination) {
            const KVCache::Lease lease(cache);
            cache.move_row(source, destination);
          },
          py::arg("source"), py::arg("destination"), "Moves a row; the source is empty afterwards.");
}

}  // namespace qwen2vl
