#include "device/device_decoder.h"

#include <memory>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/device_arguments.h"
#include "common/error.h"

namespace py = pybind11;

namespace qwen2vl {

void register_device_decoder(py::module_& m) {
  py::class_<DeviceDecoder, Decoder, std::shared_ptr<DeviceDecoder>>(
      m, "DeviceDecoder", "The decoder with everything between two tokens on a device.")
      .def(py::init([](std::shared_ptr<Device> device, std::shared_ptr<DeviceCache> cache,
                       const EmbeddingTable& table, const RopeTable& rope, int64_t prefill_chunk,
                       const std::string& dtype) {
             return std::make_shared<DeviceDecoder>(std::move(device), std::move(cache), table, rope,
                                                    prefill_chunk, float_type(dtype));
           }),
           py::arg("device").none(false), py::arg("cache").none(false), py::arg("table"), py::arg("rope"),
           py::arg("prefill_chunk"), py::arg("dtype"))
      .def("set_engine", &DeviceDecoder::set_engine, py::arg("engine"), py::keep_alive<1, 2>())
      .def_property_readonly(
          "buffers",
          [](const DeviceDecoder& decoder) {
            const DeviceDecoder::Buffers& buffers = decoder.buffers();
            py::dict addresses;
            addresses["inputs_embeds"] = address(buffers.inputs_embeds);
            addresses["cos"] = address(buffers.cos);
            addresses["sin"] = address(buffers.sin);
            addresses["past_length"] = address(buffers.past_length);
            addresses["present_length"] = address(buffers.present_length);
            addresses["last_position"] = address(buffers.last_position);
            addresses["logit_rows"] = address(buffers.logit_rows);
            addresses["logits"] = address(buffers.logits);
            return addresses;
          },
          "Device addresses of the engine's inputs and output by name: see csrc/device/device_decoder.h.");

  py::class_<VisualEmbeddings>(m, "DeviceVisual", "Visual embeddings that lie in a device's memory.")
      .def(py::init(
               [](const std::shared_ptr<DeviceBlock>& block, int64_t offset, int64_t rows, int64_t width) {
                 const auto bytes = static_cast<int64_t>(block->size());
                 if (offset < 0 || rows < 1 || width < 1 || offset > bytes ||
                     rows > (bytes - offset) / 4 / width) {
                   throw InputError(std::to_string(rows) + " rows of " + std::to_string(width) +
                                    " float32 values at byte " + std::to_string(offset) +
                                    " don't fit a block of " + std::to_string(bytes) + " bytes");
                 }
                 return VisualEmbeddings{reinterpret_cast<const float*>(block->as<char>() + offset), rows,
                                         width, true, block};
               }),
           py::arg("block"), py::arg("offset"), py::arg("rows"), py::arg("width"),
           "float32 [rows, width] from byte `offset` of a DeviceBlock on, which it keeps alive.");
}

}  // namespace qwen2vl
