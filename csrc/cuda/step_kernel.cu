#include "cuda/launch.cuh"
#include "cuda/step_kernel.h"

namespace qwen2vl::cuda {

namespace {

struct AdvanceRow {
  StepRows step;
  __device__ void operator()(int64_t index) const { advance_row(step, index); }
};

}  // namespace

void advance_rows(const StepRows& step, StreamHandle stream) {
  for_each(step.rows * kSampledWords, AdvanceRow{step}, stream, "advancing rows");
}

}  // namespace qwen2vl::cuda
