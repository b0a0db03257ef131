#include "device/device.h"

#include <pybind11/stl.h>

#include <map>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/frames.h"
#include "bindings/sampled_token.h"
#include "device/block_pool.h"
#include "device/device_cache.h"
#include "device/device_decoder.h"
#include "device/frame_preparer.h"
#include "device/host_device.h"
#include "device/row_sampler.h"
#include "device/step_program.h"

namespace py = pybind11;

namespace qwen2vl {

namespace {

FloatType float_type(const std::string& name) {
  if (name == "float32") return FloatType::kFloat32;
  if (name == "bfloat16") return FloatType::kBFloat16;
  if (name == "float16") return FloatType::kFloat16;
  throw InputError("a device computes in float32, bfloat16 or float16, not in " + name);
}

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

uintptr_t address(const void* data) { return reinterpret_cast<uintptr_t>(data); }

// An engine whose enqueue() is a Python method: takes the GIL for the call.
class PythonEngine : public DeviceEngine {
 public:
  void enqueue(const EngineStep& step) override {
    const py::gil_scoped_acquire acquire;
    const py::function method = py::get_override(static_cast<const DeviceEngine*>(this), "enqueue");
    if (!method) throw Error("an engine must define enqueue(self, first_row, rows, tokens, longest, prompt)");
    try {
      method(step.first_row, step.rows, step.tokens, step.longest, step.prompt);
    } catch (const py::error_already_set& error) {
      // The compiled loop has to tell what the engine failed at from an interrupt.
      if (!error.matches(py::module_::import("qwen2vl_rt.errors").attr("BackendError"))) throw;
      throw DeviceError(py::str(error.value()).cast<std::string>());
    }
  }
  bool recordable() const override {
    const py::gil_scoped_acquire acquire;
    const py::function method = py::get_override(static_cast<const DeviceEngine*>(this), "recordable");
    return method && py::bool_(method());
  }
};

void register_block(py::module_& m) {
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

// A step's fields by name; what is left out is zero.
LinearStep linear_step(const py::dict& fields, const std::vector<py::dict>& matrices) {
  static const std::map<std::string, MatrixForm> kForms = {
      {"plain", MatrixForm::kPlain}, {"blocks4", MatrixForm::kBlocks4}, {"blocks8", MatrixForm::kBlocks8}};
  const auto number = [](const py::dict& from, const char* name) {
    return from.contains(name) ? from[name].cast<int64_t>() : 0;
  };
  const auto memory = [&](const py::dict& from, const char* name) {
    return pointer<void>(static_cast<uintptr_t>(number(from, name)));
  };
  if (matrices.empty() || matrices.size() > kMostMatrices) throw InputError("a step has 1 to 3 matrices");
  LinearStep step{};
  step.type = float_type(fields["dtype"].cast<std::string>());
  step.result_type =
      fields.contains("result_dtype") ? float_type(fields["result_dtype"].cast<std::string>()) : step.type;
  step.form = kForms.at(fields["form"].cast<std::string>());
  step.rows = number(fields, "rows");
  step.inputs = number(fields, "inputs");
  step.block = number(fields, "block");
  step.x = memory(fields, "x");
  step.norm = memory(fields, "norm");
  step.epsilon = fields.contains("epsilon") ? fields["epsilon"].cast<float>() : 0.0f;
  step.added = memory(fields, "added");
  step.matrices = static_cast<int32_t>(matrices.size());
  step.gated = static_cast<int32_t>(number(fields, "gated"));
  step.rotated = static_cast<int32_t>(number(fields, "rotated"));
  step.head_dim = number(fields, "head_dim");
  step.cos = memory(fields, "cos");
  step.sin = memory(fields, "sin");
  for (size_t i = 0; i < matrices.size(); ++i) {
    step.matrix[i] = {memory(matrices[i], "weights"),
                      memory(matrices[i], "scales"),
                      static_cast<const uint8_t*>(memory(matrices[i], "zero_points")),
                      memory(matrices[i], "bias"),
                      number(matrices[i], "outputs"),
                      memory(matrices[i], "result")};
  }
  return step;
}

void register_device_class(py::module_& m) {
  m.attr("FEW_ROWS") = kFewRows;
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

void register_decoder(py::module_& m) {
  m.attr("MOST_PROMPT_SHAPES") = kMostPromptShapes;
  py::class_<DeviceEngine, PythonEngine, std::shared_ptr<DeviceEngine>>(
      m, "DeviceEngine",
      "An inference engine on device memory; subclasses define enqueue(first_row, rows, tokens, longest, "
      "prompt), which queues the step on the device's stream, and may define recordable().")
      .def(py::init<>());
  m.def("decode_attention_fits", &decode_attention_fits, py::arg("head_dim"),
        "Whether a StepProgram takes heads of this size.");
  py::class_<StepProgram, DeviceEngine, std::shared_ptr<StepProgram>>(
      m, "StepProgram", py::dynamic_attr(),
      "Decode steps by the project's own kernels: see csrc/device/step_program.h.")
      .def(py::init([](std::shared_ptr<Device> device, std::shared_ptr<DeviceCache> cache,
                       std::shared_ptr<DeviceEngine> prompts, int64_t most_rows, uintptr_t past_length,
                       bool early) {
             return std::make_shared<StepProgram>(std::move(device), std::move(cache), std::move(prompts),
                                                  most_rows, pointer<const int64_t>(past_length), early);
           }),
           py::arg("device"), py::arg("cache"), py::arg("prompts"), py::arg("most_rows"),
           py::arg("past_length"), py::arg("early") = true, py::keep_alive<1, 4>())
      .def(
          "linear",
          [](StepProgram& program, const py::dict& fields, const std::vector<py::dict>& matrices) {
            program.add(linear_step(fields, matrices));
          },
          py::arg("step"), py::arg("matrices"), "Adds layers: see Device.linear.")
      .def(
          "attention",
          [](StepProgram& program, int64_t layer, int64_t heads, uintptr_t q, uintptr_t k, uintptr_t v,
             uintptr_t output) {
            program.add_attention(layer, heads, pointer<void>(q), pointer<void>(k), pointer<void>(v),
                                  pointer<void>(output));
          },
          py::arg("layer"), py::arg("heads"), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("output"))
      .def(
          "allocate",
          [](StepProgram& program, int64_t width, const std::string& dtype) {
            return address(program.allocate(width, float_type(dtype)));
          },
          py::arg("width"), py::arg("dtype"), "The address of [most_rows, width].")
      .def(
          "run", [](StepProgram& program, int64_t rows) { program.enqueue({0, rows, 1, 0, false}); },
          py::arg("rows"), "Queues the operations alone, for so many rows of the cache.");
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

  py::class_<RowSampler>(m, "RowSampler", "A device's sampler for one answer, with Sampler's own interface.")
      .def(py::init([](std::shared_ptr<Device> device, const SamplingOptions& options, int64_t vocab,
                       const py::object& prompt) {
             return RowSampler(std::move(device), options, vocab, integer_vector<int32_t>(prompt, "prompt"));
           }),
           py::arg("device"), py::arg("options"), py::arg("vocab"), py::arg("prompt") = py::tuple())
      .def(
          "sample",
          [](RowSampler& sampler, const py::object& logits) {
            const FloatArray array = float_array(logits, 1, "logits");
            return token_tuple(sampler.sample(array.data(), array.size()), sampler.logprobs() >= 0);
          },
          py::arg("logits"), "The next token for logits float32 [vocab], as Sampler.sample gives it.");

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

}  // namespace

void register_device(py::module_& m) {
  register_block(m);
  register_device_class(m);
  register_device_cache(m);
  register_decoder(m);
}

}  // namespace qwen2vl
