#include <vector>

#include "common/team.h"
#include "image/frame_kernel.h"

namespace qwen2vl::cpu {

void prepare_frame_job(const FrameJob& job) {
  std::vector<uint8_t> scratch(kFrameScratch);
  const int32_t tiles_x = (job.horizontal.output + kTileWidth - 1) / kTileWidth;
  const int32_t tiles_y = (job.vertical.output + job.tile_height - 1) / job.tile_height;
  for (int32_t y = 0; y < tiles_y; ++y) {
    for (int32_t x = 0; x < tiles_x; ++x) prepare_tile(SerialTeam(), job, x, y, scratch.data());
  }
}

}  // namespace qwen2vl::cpu
