#include "bindings/bindings.h"
#include "common/parallel.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled runtime of qwen2vl_rt. Private: use the package's own classes.";
  m.attr("__version__") = QWEN2VL_VERSION;
  m.def("set_threads", &qwen2vl::set_threads, pybind11::arg("threads"),
        "Threads of picture preparation and cache copies, process-wide; 0 takes all cores.");
  qwen2vl::register_errors(m);
  qwen2vl::register_rope(m);
  qwen2vl::register_embedding(m);
  qwen2vl::register_cache(m);
  qwen2vl::register_image(m);
  qwen2vl::register_sampling(m);
  qwen2vl::register_text(m);
  qwen2vl::register_generate(m);
  qwen2vl::register_fair_lock(m);
  qwen2vl::register_device_memory(m);
  qwen2vl::register_device(m);
  qwen2vl::register_device_cache(m);
  qwen2vl::register_device_engine(m);
  qwen2vl::register_step_program(m);
  qwen2vl::register_device_decoder(m);
  qwen2vl::register_row_sampler(m);
  qwen2vl::register_frame_preparer(m);
  qwen2vl::register_operators(m);
}
