#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "cache/kv_cache.h"
#include "rope/rope_table.h"

namespace py = pybind11;

namespace qwen2vl {

namespace {

py::array_t<float> view_tensor(const py::object& self, const float* data) {
  const auto& cache = self.cast<const KVCache&>();
  return view_of(data, {cache.rows(), cache.kv_heads(), cache.capacity(), cache.head_dim()}, self);
}

}  // namespace

void register_cache(py::module_& m) {
  py::class_<CacheRows, std::shared_ptr<CacheRows>>(
      m, "CacheRows", "What the rows of a KV cache hold, wherever their memory is.")
      .def_property_readonly("layers", &CacheRows::layers)
      .def_property_readonly("rows", &CacheRows::rows)
      .def_property_readonly("kv_heads", &CacheRows::kv_heads)
      .def_property_readonly("capacity", &CacheRows::capacity)
      .def_property_readonly("head_dim", &CacheRows::head_dim)
      .def("length", &CacheRows::length, py::arg("row"), "How many positions the row holds.")
      .def(
          "append",
          [](CacheRows& cache, int64_t row, const py::object& identities) {
            const auto values = integer_vector<uint64_t>(identities, "identities");
            const CacheRows::Lease lease(cache);
            cache.append(row, values.data(), static_cast<int64_t>(values.size()));
          },
          py::arg("row"), py::arg("identities"),
          "Counts len(identities) more positions of the row as written. The generator does this by itself.")
      .def(
          "truncate",
          [](CacheRows& cache, int64_t row, int64_t length) {
            const CacheRows::Lease lease(cache);
            cache.truncate(row, length);
          },
          py::arg("row"), py::arg("length"), "Cuts the row to its first `length` positions.")
      .def(
          "copy_row",
          [](CacheRows& cache, int64_t source, int64_t destination) {
            const CacheRows::Lease lease(cache);
            cache.copy_row(source, destination);
          },
          py::arg("source"), py::arg("destination"), "Forks a row: both hold the same positions afterwards.")
      .def(
          "move_row",
          [](CacheRows& cache, int64_t source, int64_t destination) {
            const CacheRows::Lease lease(cache);
            cache.move_row(source, destination);
          },
          py::arg("source"), py::arg("destination"), "Moves a row; the source is empty afterwards.")
      .def(
          "remove",
          [](CacheRows& cache, int64_t row, int64_t begin, int64_t end, const std::array<int64_t, 3>& shift,
             const RopeTable& rope, const py::object& identities) {
            const auto values = integer_vector<uint64_t>(identities, "identities");
            const CacheRows::Lease lease(cache);
            if (rope.width() * 2 != cache.head_dim()) {
              throw InputError("the rope table is for heads of " + std::to_string(rope.width() * 2) +
                               ", the cache's are of " + std::to_string(cache.head_dim()));
            }
            if (end > cache.length(row) || static_cast<int64_t>(values.size()) != cache.length(row) - end) {
              throw InputError(std::to_string(values.size()) + " identities for what lies behind position " +
                               std::to_string(end) + " of " + std::to_string(cache.length(row)));
            }
            std::vector<float> cos(rope.width()), sin(rope.width());
            rope.fill(shift.data(), 1, 0, 1, cos.data(), sin.data());
            cache.remove(row, begin, end, cos.data(), sin.data(), values.data());
          },
          py::arg("row"), py::arg("begin"), py::arg("end"), py::arg("shift"), py::arg("rope"),
          py::arg("identities"),
          "Takes positions [begin, end) out of a row and closes the gap; the keys behind it are turned as if "
          "their M-RoPE positions (temporal, height, width) had changed by `shift`. identities: the moved "
          "positions' new ones.");

  py::class_<KVCache, CacheRows, std::shared_ptr<KVCache>>(
      m, "KVCache", "Keys and values of `rows` sequences on the CPU, float32, allocated once.")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, int64_t>(), py::arg("layers"), py::arg("rows"),
           py::arg("kv_heads"), py::arg("capacity"), py::arg("head_dim"))
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
          py::arg("layer"), "Writable view [rows, kv_heads, capacity, head_dim]; keeps the cache alive.");
}

}  // namespace qwen2vl
