#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "device/device.h"

namespace qwen2vl {

// Blocks of a device's memory for what comes and goes with a request. Asking a GPU for memory takes as long
// as many kernels do, and giving it back waits for all that runs there: so a block that nobody holds any more
// is given out again. What is then queued with it must come behind what its last holder has queued, or that
// be done.
class BlockPool {
 public:
  explicit BlockPool(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  // A block of at least so many bytes, which hold anything. From any thread. Throws MemoryLimitError.
  std::shared_ptr<DeviceBlock> take(size_t bytes);

 private:
  static constexpr size_t kKept = 2;  // blocks, the largest that there were

  std::shared_ptr<Device> device_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<DeviceBlock>> blocks_;
};

}  // namespace qwen2vl
