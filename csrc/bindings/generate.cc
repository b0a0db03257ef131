#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <memory>
#include <utility>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/sampled_token.h"
#include "generate/generator.h"
#include "generate/host_decoder.h"

namespace py = pybind11;

namespace qwen2vl {

namespace {

// An executor whose run() is a Python method: takes the GIL for the call.
class PythonExecutor : public Executor {
 public:
  void run(DecoderStep& step) override {
    const py::gil_scoped_acquire acquire;
    const py::function method = py::get_override(static_cast<const Executor*>(this), "run");
    if (!method) throw Error("an executor must define run(self, step)");
    method(step.shared_from_this());
  }
};

// A view of one of the step's buffers, shaped for the current B, T and K; keeps the step alive.
template <typename T>
py::array_t<T> view(const std::shared_ptr<DecoderStep>& step, T* data, std::vector<py::ssize_t> shape) {
  return view_of(data, std::move(shape), py::cast(step));
}

void register_step(py::module_& m) {
  using Step = std::shared_ptr<DecoderStep>;
  py::class_<DecoderStep, Step>(m, "DecoderStep",
                                "One run of the decoder: views of buffers whose addresses never change.")
      .def_readonly("first_row", &DecoderStep::first_row, "The cache row of the step's row 0.")
      .def_readonly("rows", &DecoderStep::rows, "B")
      .def_readonly("tokens", &DecoderStep::tokens, "T")
      .def_readonly("logit_row_count", &DecoderStep::logit_row_count, "K")
      .def_readonly("prompt", &DecoderStep::prompt, "Whether the tokens are a prompt's, not an answer's own.")
      .def_property_readonly(
          "inputs_embeds",
          [](const Step& step) {
            return view(step, step->inputs_embeds(), {step->rows, step->tokens, step->sizes.hidden});
          },
          "float32 [B, T, hidden]")
      .def_property_readonly(
          "cos",
          [](const Step& step) {
            return view(step, step->cos(), {step->rows, step->tokens, step->sizes.rope_width});
          },
          "float32 [B, T, head_dim / 2]")
      .def_property_readonly(
          "sin",
          [](const Step& step) {
            return view(step, step->sin(), {step->rows, step->tokens, step->sizes.rope_width});
          },
          "float32 [B, T, head_dim / 2]")
      .def_property_readonly(
          "past_length", [](const Step& step) { return view(step, step->past_length(), {step->rows}); },
          "int64 [B], positions that each row already holds")
      .def_property_readonly(
          "logit_rows",
          [](const Step& step) {
            return view(step, step->logit_rows(), {step->rows, step->logit_row_count});
          },
          "int64 [B, K], which of the T tokens to score")
      .def_property_readonly(
          "logits",
          [](const Step& step) {
            return view(step, step->logits(), {step->rows, step->logit_row_count, step->sizes.vocab});
          },
          "float32 [B, K, vocab], to be written");

  py::class_<Executor, PythonExecutor, std::shared_ptr<Executor>>(
      m, "Executor",
      "The inference engine as the generation loop sees it; subclasses define run(self, step).")
      .def(py::init<>())
      .def("run", &Executor::run, py::arg("step"),
           "Writes keys and values of the step's tokens to the cache and the logits to step.logits.");
}

// float32 [n, hidden], or None. The array is kept alive by the request, and let go under the GIL.
VisualEmbeddings visual_embeddings(const py::handle& object) {
  VisualEmbeddings visual;
  if (object.is_none()) return visual;
  if (py::isinstance<VisualEmbeddings>(object)) return object.cast<VisualEmbeddings>();
  auto array = std::make_unique<FloatArray>(float_array(object, 2, "visual embeddings"));
  visual.data = array->data();
  visual.rows = array->shape(0);
  visual.width = array->shape(1);
  visual.owner = std::shared_ptr<const FloatArray>(array.release(), [](const FloatArray* held) {
    const py::gil_scoped_acquire acquire;
    delete held;
  });
  return visual;
}

void fill_prompt(const py::object& token_ids, const py::object& grids, const py::object& content_ids,
                 Request* request) {
  request->token_ids = integer_vector<int32_t>(token_ids, "token_ids");
  request->grids = grid_vector(grids);
  if (!content_ids.is_none()) request->content_ids = integer_vector<uint64_t>(content_ids, "content_ids");
}

std::unique_ptr<Request> make_request(const py::object& token_ids, const py::object& grids,
                                      const py::iterable& embeddings, const py::object& content_ids,
                                      const SamplingOptions& sampling, int64_t max_new_tokens,
                                      const py::object& stop_ids, std::vector<std::string> stop_strings,
                                      int64_t prompt_lookup) {
  auto request = std::make_unique<Request>();
  fill_prompt(token_ids, grids, content_ids, request.get());
  for (const py::handle visual : embeddings) request->visuals.push_back(visual_embeddings(visual));
  request->sampling = sampling;
  request->max_new_tokens = max_new_tokens;
  request->stop_ids = integer_vector<int32_t>(stop_ids, "stop_ids");
  request->stop_strings = std::move(stop_strings);
  request->prompt_lookup = prompt_lookup;
  return request;
}

const char* name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "";
}

void register_request(py::module_& m) {
  py::class_<Request, std::shared_ptr<Request>>(m, "Request",
                                                "A prompt, ready for the decoder, and how to continue.")
      .def(py::init(&make_request), py::arg("token_ids"), py::kw_only(), py::arg("grids") = py::none(),
           py::arg("embeddings") = py::tuple(), py::arg("content_ids") = py::none(),
           py::arg("sampling") = SamplingOptions(), py::arg("max_new_tokens"),
           py::arg("stop_ids") = py::tuple(), py::arg("stop_strings") = std::vector<std::string>{},
           py::arg("prompt_lookup") = 0,
           "token_ids [T], pads expanded; grids [n, 3] and embeddings (float32 [n_i, hidden], or None for "
           "those in the cached prefix) in order of appearance; content_ids uint64 [T]: the token id for "
           "text, "
           "a hash of content and index for pads. prompt_lookup: the most tokens that a step may draft.")
      .def_readonly("max_new_tokens", &Request::max_new_tokens)
      .def_property_readonly("prompt_tokens",
                             [](const Request& request) { return request.token_ids.size(); });

  py::class_<Result>(m, "Result", "An answer.")
      .def_readonly("token_ids", &Result::token_ids, "Every token chosen, the stop token included.")
      .def_readonly("text", &Result::text)
      .def_property_readonly(
          "finish_reason", [](const Result& result) { return name_of(result.finish_reason); },
          "'stop', 'length' or 'cancelled'")
      .def_readonly("stop_string", &Result::stop_string, "The stop string that ended the answer, or None.")
      .def_property_readonly(
          "logprobs",
          [](const Result& result) {
            py::list tokens;
            for (const SampledToken& token : result.logprobs) tokens.append(token_tuple(token, true));
            return tokens;
          },
          "One (id, logprob, ((id, logprob), ...)) a token when asked for, else empty.")
      .def_readonly("prompt_tokens", &Result::prompt_tokens)
      .def_readonly("cached_tokens", &Result::cached_tokens, "Of the prompt, found in the cache.")
      .def_readonly("steps", &Result::steps, "Decode steps.")
      .def_readonly("drafted_tokens", &Result::drafted_tokens, "Checked beside the tokens that were due.")
      .def_readonly("accepted_tokens", &Result::accepted_tokens, "Of these, the ones that came true.")
      .def_readonly("prefill_seconds", &Result::prefill_seconds)
      .def_readonly("decode_seconds", &Result::decode_seconds);

  py::class_<CancelToken, std::shared_ptr<CancelToken>>(
      m, "CancelToken", "Ends generations from any thread: they return with what they have.")
      .def(py::init<>())
      .def("cancel", &CancelToken::cancel)
      .def_property_readonly("cancelled", &CancelToken::cancelled);
}

std::vector<Result> generate(Generator& generator, const std::vector<std::shared_ptr<Request>>& requests,
                             const py::object& on_text, const std::shared_ptr<CancelToken>& cancel) {
  std::vector<const Request*> pointers;
  for (const auto& request : requests) {
    if (!request) throw InputError("a request must not be None");
    pointers.push_back(request.get());
  }
  TextCallback callback;
  if (!on_text.is_none()) {
    // on_text outlives the call, so that the callback may hold a bare reference and be destroyed without the
    // GIL.
    callback = [&on_text](int64_t index, const std::string& piece, int32_t token_id) {
      const py::gil_scoped_acquire acquire;
      return py::bool_(on_text(index, piece, token_id)).cast<bool>();
    };
  }
  const py::gil_scoped_release release;
  return generator.generate(pointers, callback, cancel.get());
}

}  // namespace

void register_generate(py::module_& m) {
  m.attr("LONGEST_DRAFT") = PromptLookup::kLongest;
  register_step(m);
  py::class_<Decoder, std::shared_ptr<Decoder>>(
      m, "Decoder", "The decoder as the generation loop sees it, with its cache.");
  py::class_<HostDecoder, Decoder, std::shared_ptr<HostDecoder>>(
      m, "HostDecoder", "The decoder with everything between two tokens on the CPU, over an executor.")
      .def(py::init<std::shared_ptr<Executor>, std::shared_ptr<CacheRows>, std::shared_ptr<EmbeddingTable>,
                    const RopeTable&, int64_t>(),
           py::arg("executor").none(false), py::arg("cache").none(false), py::arg("table").none(false),
           py::arg("rope"), py::arg("prefill_chunk"),
           py::keep_alive<1, 2>());  // the executor's Python half, which the shared pointer doesn't hold
  register_request(m);
  py::class_<Generator>(m, "Generator", "The generation loop over a decoder.")
      .def(
          py::init([](std::shared_ptr<Decoder> decoder, std::shared_ptr<TokenText> token_text,
                      int64_t hidden_size, int64_t vocab_size, int32_t merge_size, int32_t image_pad,
                      int32_t video_pad, bool answers_apart, int64_t least_chunk) {
            return std::make_unique<Generator>(
                std::move(decoder), std::move(token_text),
                DecoderSettings{
                    hidden_size, vocab_size, {image_pad, video_pad, merge_size}, answers_apart, least_chunk});
          }),
          py::arg("decoder").none(false), py::arg("token_text").none(false), py::kw_only(),
          py::arg("hidden_size"), py::arg("vocab_size"), py::arg("merge_size"), py::arg("image_pad"),
          py::arg("video_pad"), py::arg("answers_apart") = false, py::arg("least_chunk") = 1,
          py::keep_alive<1, 2>())
      .def("generate", &generate, py::arg("requests"), py::arg("on_text") = py::none(),
           py::arg("cancel") = py::none(),
           "One Result a request. on_text(index, piece, token_id) after each token, truthy ends that answer. "
           "The GIL is released except in on_text and in a Python executor.")
      .def(
          "cached_prefix",
          [](const Generator& generator, const py::object& token_ids, const py::object& grids,
             const py::object& content_ids) {
            Request request;
            fill_prompt(token_ids, grids, content_ids, &request);
            return generator.cached_prefix(request);
          },
          py::arg("token_ids"), py::arg("grids") = py::none(), py::arg("content_ids") = py::none(),
          "How many leading tokens need not be computed when this prompt is the first of the next call: "
          "visuals wholly before that may be None in its request.");
}

}  // namespace qwen2vl
