#include "cuda/cuda_device.h"

#include <utility>

#include "cuda/ignore_other_recordings.h"
#include "cuda/step_kernel.h"

namespace qwen2vl::cuda {

namespace {

class GraphRecording : public Recording {
 public:
  explicit GraphRecording(std::shared_ptr<Stream> stream) : stream_(std::move(stream)) {}

  bool replay() override {
    if (!graph_.ready()) return false;
    graph_.launch(*stream_);
    return true;
  }
  void begin() override { graph_.begin(*stream_); }
  void end() override {
    graph_.end();
    graph_.launch(*stream_);
  }
  void abandon() noexcept override { graph_.abandon(); }

 private:
  std::shared_ptr<Stream> stream_;
  Graph graph_;
};

}  // namespace

CudaDevice::CudaDevice(std::shared_ptr<Stream> stream) : stream_(std::move(stream)) {}

void* CudaDevice::allocate(size_t bytes) {
  DeviceBuffer buffer(bytes);
  fill_zero(buffer.data(), bytes, *stream_);
  void* const address = buffer.data();
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  if (address != nullptr) blocks_.emplace(address, std::move(buffer));
  return address;
}

void CudaDevice::release(void* pointer) noexcept {
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  blocks_.erase(pointer);
}

void* CudaDevice::allocate_shared(size_t bytes, void** device_view) {
  PinnedBuffer buffer(bytes);
  void* const address = buffer.data();
  *device_view = buffer.device_data();
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  if (address != nullptr) shared_blocks_.emplace(address, std::move(buffer));
  return address;
}

void CudaDevice::release_shared(void* pointer) noexcept {
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  shared_blocks_.erase(pointer);
}

void CudaDevice::upload(void* to, const void* host, size_t bytes) {
  copy_to_device(to, host, bytes, *stream_);
}

void CudaDevice::download(void* host, const void* from, size_t bytes) {
  copy_to_host(host, from, bytes, *stream_);
  stream_->synchronize();
}

void CudaDevice::copy(void* to, const void* from, size_t bytes) { copy_on_device(to, from, bytes, *stream_); }

void CudaDevice::zero(void* to, size_t bytes) { fill_zero(to, bytes, *stream_); }

void CudaDevice::transpose(const Transpose& turn) { cuda::transpose(turn, stream_->handle()); }

void CudaDevice::rope_rows(const RopeRows& rope) { cuda::rope_rows(rope, stream_->handle()); }

void CudaDevice::gather_embeddings(const EmbeddingGather& gather) {
  cuda::gather_embeddings(gather, stream_->handle());
}

void CudaDevice::cache_append(const CacheAppend& append) { cuda::cache_append(append, stream_->handle()); }

void CudaDevice::cache_copy_row(const CacheRowCopy& copy) { cuda::cache_copy_row(copy, stream_->handle()); }

void CudaDevice::cache_shift(const CacheShift& shift) { cuda::cache_shift(shift, stream_->handle()); }

void CudaDevice::prepare_frame_job(const FrameJob& job) {
  const IgnoreOtherRecordings guard;  // a kernel's first launch loads it
  cuda::prepare_frame_job(job, stream_->handle());
}

void CudaDevice::decode_attention(const DecodeAttention& attention) {
  cuda::decode_attention(attention, stream_->handle());
}

void CudaDevice::linear(const LinearStep& step, void* scratch) {
  cuda::linear(step, scratch, stream_->handle());
}

void CudaDevice::sample_rows(const SampleStep& step) { cuda::sample_rows(step, stream_->handle()); }

void CudaDevice::advance_rows(const StepRows& step) { cuda::advance_rows(step, stream_->handle()); }

void CudaDevice::mark(int slot) { marks_[slot].record(*stream_); }

void CudaDevice::wait_for(int slot) { marks_[slot].synchronize(); }

void CudaDevice::synchronize() { stream_->synchronize(); }

std::unique_ptr<Recording> CudaDevice::recording() { return std::make_unique<GraphRecording>(stream_); }

}  // namespace qwen2vl::cuda
