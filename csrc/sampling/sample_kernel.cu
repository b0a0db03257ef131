#include "cuda/block_team.cuh"
#include "cuda/launch.cuh"
#include "sampling/sample_kernel.h"
#include "sampling/sample_team.h"

namespace qwen2vl::cuda {

namespace {

constexpr int kPeakThreads = 512, kRowThreads = 768;

__global__ void __launch_bounds__(kPeakThreads, 1) peaks_kernel(SampleStep step) {
  __shared__ BlockTeam::Slot reduction[32];
  sample_peaks(BlockTeam{reduction}, step, blockIdx.y, static_cast<int32_t>(blockIdx.x));
}

__global__ void __launch_bounds__(kRowThreads, 1) row_kernel(SampleStep step) {
  __shared__ BlockTeam::Slot reduction[32];
  __shared__ SampleShared shared;
  sample_row(BlockTeam{reduction}, shared, step, blockIdx.x);
}

}  // namespace

void sample_rows(const SampleStep& step, CUstream_st* stream) {
  if (step.rows <= 0) return;
  const auto rows = static_cast<unsigned>(step.rows);
  launch(peaks_kernel, dim3(kPeakParts, rows), kPeakThreads, stream, "sampling", step);
  launch(row_kernel, rows, kRowThreads, stream, "sampling", step);
}

}  // namespace qwen2vl::cuda
