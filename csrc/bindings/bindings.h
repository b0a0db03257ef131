#pragma once

#include <pybind11/pybind11.h>

// One register_x a concept, each in its own file beside this one; module.cc calls them all.
namespace qwen2vl {

void register_errors(pybind11::module_& m);
void register_rope(pybind11::module_& m);
void register_embedding(pybind11::module_& m);
void register_cache(pybind11::module_& m);
void register_image(pybind11::module_& m);
void register_sampling(pybind11::module_& m);
void register_text(pybind11::module_& m);
void register_generate(pybind11::module_& m);
void register_fair_lock(pybind11::module_& m);
void register_device_memory(pybind11::module_& m);
void register_device(pybind11::module_& m);
void register_device_cache(pybind11::module_& m);
void register_device_engine(pybind11::module_& m);
void register_step_program(pybind11::module_& m);
void register_device_decoder(pybind11::module_& m);
void register_row_sampler(pybind11::module_& m);
void register_frame_preparer(pybind11::module_& m);
void register_operators(pybind11::module_& m);

}  // namespace qwen2vl
