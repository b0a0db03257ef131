#include "bindings/bindings.h"
#include "common/error.h"

namespace py = pybind11;

namespace qwen2vl {

namespace {

void raise(const char* name, const char* message) {
  const py::object type = py::module_::import("qwen2vl_rt.errors").attr(name);
  PyErr_SetString(type.ptr(), message);
}

}  // namespace

// The exception classes live in Python (qwen2vl_rt/errors.py), so that one family serves both languages.
void register_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const PromptTooLongError& error) {
      raise("PromptTooLongError", error.what());
    } catch (const InputError& error) {
      raise("InputError", error.what());
    } catch (const BundleError& error) {
      raise("BundleError", error.what());
    } catch (const DeviceError& error) {
      raise("BackendError", error.what());
    } catch (const MemoryLimitError& error) {
      raise("MemoryLimitError", error.what());
    } catch (const Error& error) {
      raise("Qwen2VLError", error.what());
    }
  });
}

}  // namespace qwen2vl
