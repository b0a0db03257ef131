#include "cuda/bindings/bindings.h"

PYBIND11_MODULE(_cuda, m) {
  m.doc() =
      "The CUDA half of the compiled runtime. Private, and imported on demand: see qwen2vl_rt.backends.cuda.";
  // The types shared with the CPU half, and the translation of errors, are registered there.
  pybind11::module_::import("qwen2vl_rt._core");
  qwen2vl::cuda::register_device(m);
  qwen2vl::cuda::register_memory(m);
  qwen2vl::cuda::register_onnx(m);
}
