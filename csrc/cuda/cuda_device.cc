#include "cuda/cuda_device.h"

#include <utility>

#include "cuda/ignore_other_recordings.h"
#include "cuda/on_device.h"
#include "cuda/step_kernel.h"

namespace qwen2vl::cuda {

namespace {

// While a step is recorded nothing may be freed: what Python lets go of meanwhile, of whichever session, is
// kept until the end.
class Releases {
 public:
  static Releases& one() {
    static auto* const releases = new Releases;  // what frees its blocks at exit comes after statics
    return *releases;
  }
  void hold() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++recorders_;
  }
  void let_go() noexcept {
    std::vector<DeviceBuffer> blocks;
    std::vector<PinnedBuffer> shared_blocks;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--recorders_ > 0) return;
    blocks.swap(blocks_);
    shared_blocks.swap(shared_blocks_);
  }
  void take(DeviceBuffer block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (recorders_ > 0) blocks_.push_back(std::move(block));
  }
  void take(PinnedBuffer block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (recorders_ > 0) shared_blocks_.push_back(std::move(block));
  }

 private:
  std::mutex mutex_;
  int recorders_ = 0;
  std::vector<DeviceBuffer> blocks_;
  std::vector<PinnedBuffer> shared_blocks_;
};

class GraphRecording : public Recording {
 public:
  explicit GraphRecording(std::shared_ptr<CudaDevice> device) : device_(std::move(device)) {}
  ~GraphRecording() override { abandon(); }

  bool replay() override {
    if (!graph_.ready()) return false;
    const OnDevice on(device_->stream()->device());
    graph_.launch(*device_->stream());
    return true;
  }
  void begin() override {
    const OnDevice on(device_->stream()->device());
    graph_.begin(*device_->stream());
    Releases::one().hold();
    recording_ = true;
  }
  void end() override {
    const OnDevice on(device_->stream()->device());
    const Ending ending{this};
    graph_.end();
    graph_.launch(*device_->stream());
  }
  void abandon() noexcept override {
    if (!recording_) return;
    const Ending ending{this};
    graph_.abandon();
  }

 private:
  // Recorded or not, the recording is over when this goes.
  struct Ending {
    GraphRecording* recording;
    ~Ending() {
      if (!std::exchange(recording->recording_, false)) return;
      Releases::one().let_go();
    }
  };

  std::shared_ptr<CudaDevice> device_;
  Graph graph_;
  bool recording_ = false;
};

}  // namespace

CudaDevice::CudaDevice(std::shared_ptr<Stream> stream) : stream_(std::move(stream)) {}

template <typename Work>
void CudaDevice::on_stream(Work work) {
  const OnDevice on(stream_->device());
  work(stream_->handle());
}

void* CudaDevice::allocate(size_t bytes) {
  const OnDevice on(stream_->device());
  DeviceBuffer buffer(bytes);
  fill_zero(buffer.data(), bytes, *stream_);
  void* const address = buffer.data();
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  if (address != nullptr) blocks_.emplace(address, std::move(buffer));
  return address;
}

void CudaDevice::release(void* pointer) noexcept {
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  const auto found = blocks_.find(pointer);
  if (found == blocks_.end()) return;
  Releases::one().take(std::move(found->second));
  blocks_.erase(found);
}

void* CudaDevice::allocate_shared(size_t bytes, void** device_view) {
  const OnDevice on(stream_->device());
  PinnedBuffer buffer(bytes);
  void* const address = buffer.data();
  *device_view = buffer.device_data();
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  if (address != nullptr) shared_blocks_.emplace(address, std::move(buffer));
  return address;
}

void CudaDevice::release_shared(void* pointer) noexcept {
  const std::lock_guard<std::mutex> lock(blocks_mutex_);
  const auto found = shared_blocks_.find(pointer);
  if (found == shared_blocks_.end()) return;
  Releases::one().take(std::move(found->second));
  shared_blocks_.erase(found);
}

void CudaDevice::upload(void* to, const void* host, size_t bytes) {
  on_stream([&](StreamHandle) { copy_to_device(to, host, bytes, *stream_); });
}

void CudaDevice::download(void* host, const void* from, size_t bytes) {
  on_stream([&](StreamHandle) {
    copy_to_host(host, from, bytes, *stream_);
    stream_->synchronize();
  });
}

void CudaDevice::copy(void* to, const void* from, size_t bytes) {
  on_stream([&](StreamHandle) { copy_on_device(to, from, bytes, *stream_); });
}

void CudaDevice::zero(void* to, size_t bytes) {
  on_stream([&](StreamHandle) { fill_zero(to, bytes, *stream_); });
}

void CudaDevice::transpose(const Transpose& turn) {
  on_stream([&](StreamHandle stream) { cuda::transpose(turn, stream); });
}

void CudaDevice::rope_rows(const RopeRows& rope) {
  on_stream([&](StreamHandle stream) { cuda::rope_rows(rope, stream); });
}

void CudaDevice::gather_embeddings(const EmbeddingGather& gather) {
  on_stream([&](StreamHandle stream) { cuda::gather_embeddings(gather, stream); });
}

void CudaDevice::cache_append(const CacheAppend& append) {
  on_stream([&](StreamHandle stream) { cuda::cache_append(append, stream); });
}

void CudaDevice::cache_copy_row(const CacheRowCopy& copy) {
  on_stream([&](StreamHandle stream) { cuda::cache_copy_row(copy, stream); });
}

void CudaDevice::cache_shift(const CacheShift& shift) {
  on_stream([&](StreamHandle stream) { cuda::cache_shift(shift, stream); });
}

void CudaDevice::prepare_frame_job(const FrameJob& job) {
  const IgnoreOtherRecordings guard;  // a kernel's first launch loads it
  on_stream([&](StreamHandle stream) { cuda::prepare_frame_job(job, stream); });
}

void CudaDevice::decode_attention(const DecodeAttention& attention) {
  on_stream([&](StreamHandle stream) { cuda::decode_attention(attention, stream); });
}

void CudaDevice::linear(const LinearStep& step, void* scratch) {
  on_stream([&](StreamHandle stream) { cuda::linear(step, scratch, stream); });
}

void CudaDevice::sample_rows(const SampleStep& step) {
  on_stream([&](StreamHandle stream) { cuda::sample_rows(step, stream); });
}

void CudaDevice::advance_rows(const StepRows& step) {
  on_stream([&](StreamHandle stream) { cuda::advance_rows(step, stream); });
}

void CudaDevice::mark(int slot) {
  on_stream([&](StreamHandle) { marks_[slot].record(*stream_); });
}

void CudaDevice::wait_for(int slot) {
  on_stream([&](StreamHandle) { marks_[slot].synchronize(); });
}

void CudaDevice::synchronize() {
  on_stream([&](StreamHandle) { stream_->synchronize(); });
}

std::unique_ptr<Recording> CudaDevice::recording() {
  return std::make_unique<GraphRecording>(std::static_pointer_cast<CudaDevice>(shared_from_this()));
}

}  // namespace qwen2vl::cuda
