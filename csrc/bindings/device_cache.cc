#include "device/device_cache.h"

#include <memory>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/device_arguments.h"
#include "device/device.h"

namespace py = pybind11;

namespace qwen2vl {

void register_device_cache(py::module_& m) {
  py::class_<DeviceCache, CacheRows, std::shared_ptr<DeviceCache>>(
      m, "DeviceCache", "Keys and values of `rows` sequences in a device's memory, allocated whole.")
      .def(py::init([](std::shared_ptr<Device> device, int64_t layers, int64_t rows, int64_t kv_heads,
                       int64_t capacity, int64_t head_dim, const std::string& dtype) {
             return std::make_shared<DeviceCache>(std::move(device), layers, rows, kv_heads, capacity,
                                                  head_dim, float_type(dtype));
           }),
           py::arg("device"), py::arg("layers"), py::arg("rows"), py::arg("kv_heads"), py::arg("capacity"),
           py::arg("head_dim"), py::arg("dtype"))
      .def_property_readonly("bytes", &DeviceCache::bytes)
      .def(
          "keys", [](const DeviceCache& cache, int64_t layer) { return address(cache.tensor(layer, 0)); },
          py::arg("layer"), "Device address of [rows, kv_heads, capacity, head_dim].")
      .def(
          "values", [](const DeviceCache& cache, int64_t layer) { return address(cache.tensor(layer, 1)); },
          py::arg("layer"), "Device address of [rows, kv_heads, capacity, head_dim].")
      .def(
          "write",
          [](const DeviceCache& cache, Device& device, int64_t layer, int64_t first_row, int64_t rows,
             int64_t tokens, uintptr_t past_length, uintptr_t keys, uintptr_t values) {
            device.cache_append({cache.layout(), layer, first_row, rows, tokens,
                                 pointer<const int64_t>(past_length), pointer<const void>(keys),
                                 pointer<const void>(values)});
          },
          py::arg("device"), py::arg("layer"), py::arg("first_row"), py::arg("rows"), py::arg("tokens"),
          py::arg("past_length"), py::arg("keys"), py::arg("values"),
          "Writes new keys and values [rows, kv_heads, tokens, head_dim] behind each row's past, for engines "
          "that don't do it themselves. Addresses are the device's; past_length int64 [rows].")
      .def(
          "attend",
          [](const DeviceCache& cache, const std::shared_ptr<Device>& device, int64_t layer, int64_t rows,
             int64_t heads, uintptr_t past_length, uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t output) {
            const DeviceBlock scratch(device, decode_attention_scratch(rows, heads, cache.head_dim()));
            device->decode_attention({cache.layout(), layer, rows, heads, pointer<const int64_t>(past_length),
                                      pointer<const void>(q), pointer<const void>(k), pointer<const void>(v),
                                      pointer<void>(output), scratch.as<void>(), 0});
            device->synchronize();  // before the scratch memory goes
          },
          py::arg("device"), py::arg("layer"), py::arg("rows"), py::arg("heads"), py::arg("past_length"),
          py::arg("q"), py::arg("k"), py::arg("v"), py::arg("output"),
          "One token's attention for each row: see csrc/attention/decode_attention.h.");
}

}  // namespace qwen2vl
