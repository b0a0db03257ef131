#include <pybind11/stl.h>

#include <memory>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "text/text_stream.h"
#include "text/token_text.h"

namespace py = pybind11;

namespace qwen2vl {

void register_text(py::module_& m) {
  py::class_<TokenText, std::shared_ptr<TokenText>>(m, "TokenText",
                                                    "The bytes of every token of the vocabulary.")
      .def(py::init([](const std::vector<py::bytes>& token_bytes, const std::vector<int32_t>& special) {
             std::vector<std::string> strings(token_bytes.begin(), token_bytes.end());
             return std::make_shared<TokenText>(strings, special);
           }),
           py::arg("token_bytes"), py::arg("special") = std::vector<int32_t>{},
           "token_bytes: one bytes object an id; special: the ids that are not text.")
      .def(
          "bytes",
          [](const TokenText& text, int32_t id) {
            return py::bytes(text.bytes(id).data(), text.bytes(id).size());
          },
          py::arg("id"))
      .def(
          "decode",
          [](const TokenText& text, const py::object& ids) {
            TextStream stream(text, {});
            std::string decoded;
            for (const int32_t id : integer_vector<int32_t>(ids, "ids")) stream.push(id, &decoded);
            stream.finish(&decoded);
            return decoded;
          },
          py::arg("ids"), "The text of a whole answer.");

  py::class_<TextStream>(m, "TextStream", "The text of one answer, token by token.")
      .def(py::init<const TokenText&, std::vector<std::string>>(), py::arg("token_text"),
           py::arg("stop_strings") = std::vector<std::string>{}, py::keep_alive<1, 2>())
      .def(
          "push",
          [](TextStream& stream, int32_t id) {
            std::string piece;
            stream.push(id, &piece);
            return piece;
          },
          py::arg("id"), "The text that this token completes, often none.")
      .def(
          "finish",
          [](TextStream& stream) {
            std::string piece;
            stream.finish(&piece);
            return piece;
          },
          "What was held back: there are no more tokens.")
      .def_property_readonly("stop_string", [](const TextStream& stream) -> py::object {
        if (stream.stop_string() == nullptr) return py::none();
        return py::str(*stream.stop_string());
      });
}

}  // namespace qwen2vl
