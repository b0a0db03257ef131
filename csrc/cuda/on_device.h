#pragma once

#include <cuda_runtime_api.h>

#include <optional>

#include "cuda/error.h"

namespace qwen2vl::cuda {

// While one of these lives, the calling thread works on a GPU, if one is given. Threads of the program around
// us may have chosen another, and get theirs back.
class OnDevice {
 public:
  explicit OnDevice(std::optional<int> device) {
    if (!device) return;
    check(cudaGetDevice(&before_), "selecting the GPU");
    changed_ = before_ != *device;
    if (changed_) check(cudaSetDevice(*device), "selecting the GPU");
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

}  // namespace qwen2vl::cuda
