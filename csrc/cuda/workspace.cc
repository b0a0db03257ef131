#include "cuda/workspace.h"

#include <map>
#include <mutex>

#include "cuda/memory.h"

namespace qwen2vl::cuda {

namespace {

struct Workspaces {
  std::mutex mutex;
  std::map<StreamHandle, DeviceBuffer> buffers;
};

Workspaces& all() {
  static auto* const workspaces = new Workspaces;  // streams may end after statics have
  return *workspaces;
}

}  // namespace

void* workspace(StreamHandle stream, size_t bytes) {
  const std::lock_guard<std::mutex> lock(all().mutex);
  DeviceBuffer& buffer = all().buffers[stream];
  if (buffer.size() < bytes) {
    buffer = DeviceBuffer();  // waits for the stream, and makes room
    buffer = DeviceBuffer(bytes);
  }
  return buffer.data();
}

void forget_workspace(StreamHandle stream) noexcept {
  const std::lock_guard<std::mutex> lock(all().mutex);
  all().buffers.erase(stream);
}

}  // namespace qwen2vl::cuda
