#include "device/block_pool.h"

#include <algorithm>

namespace qwen2vl {

std::shared_ptr<DeviceBlock> BlockPool::take(size_t bytes) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto is_free = [](const auto& block) { return block.use_count() == 1; };
  std::shared_ptr<DeviceBlock>* best = nullptr;
  for (auto& block : blocks_) {
    const bool fits = is_free(block) && block->size() >= bytes;
    if (fits && (best == nullptr || block->size() < (*best)->size())) best = &block;
  }
  if (best != nullptr) return *best;
  // None is large enough: where there is no place for another, a free one makes it.
  if (blocks_.size() == kKept) {
    const auto free = std::find_if(blocks_.begin(), blocks_.end(), is_free);
    if (free == blocks_.end()) return std::make_shared<DeviceBlock>(device_, bytes);
    blocks_.erase(free);
  }
  blocks_.push_back(std::make_shared<DeviceBlock>(device_, bytes));
  return blocks_.back();
}

}  // namespace qwen2vl
