#pragma once

#include <pybind11/pybind11.h>

// One register_x a concept, each in its own file beside this one; module.cc calls them all.
namespace qwen2vl::cuda {

void register_device(pybind11::module_& m);
void register_memory(pybind11::module_& m);
void register_onnx(pybind11::module_& m);

}  // namespace qwen2vl::cuda
