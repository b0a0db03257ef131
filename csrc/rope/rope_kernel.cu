#include "cuda/launch.cuh"
#include "rope/rope_kernel.h"

namespace qwen2vl::cuda {

namespace {

struct RopeElement {
  RopeRows rope;
  __device__ void operator()(int64_t index) const {
    rope_element(rope, index / rope.width, index % rope.width);
  }
};

}  // namespace

void rope_rows(const RopeRows& rope, CUstream_st* stream) {
  for_each(rope.tokens * rope.width, RopeElement{rope}, stream, "rope table");
}

}  // namespace qwen2vl::cuda
