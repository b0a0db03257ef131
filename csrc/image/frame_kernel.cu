#include "cuda/block_team.cuh"
#include "cuda/launch.cuh"
#include "image/frame_kernel.h"

namespace qwen2vl::cuda {

namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) frame_kernel(FrameJob job) {
  __shared__ BlockTeam::Slot reduction[32];
  __shared__ uint8_t scratch[kFrameScratch];
  prepare_tile(BlockTeam{reduction}, job, static_cast<int32_t>(blockIdx.x), static_cast<int32_t>(blockIdx.y),
               scratch);
}

}  // namespace

void prepare_frame_job(const FrameJob& job, CUstream_st* stream) {
  const dim3 tiles((job.horizontal.output + kTileWidth - 1) / kTileWidth,
                   (job.vertical.output + job.tile_height - 1) / job.tile_height);
  launch(frame_kernel, tiles, kThreads, stream, "frame preparation", job);
}

}  // namespace qwen2vl::cuda
