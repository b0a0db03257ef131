#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/memory.h"
#include "cuda/stream.h"
#include "device/device.h"

namespace qwen2vl::cuda {

// A GPU and the one stream on which everything of a session runs.
class CudaDevice : public Device {
 public:
  explicit CudaDevice(std::shared_ptr<Stream> stream);

  const std::shared_ptr<Stream>& stream() const { return stream_; }

  void* allocate(size_t bytes) override;
  void release(void* pointer) noexcept override;
  void* allocate_shared(size_t bytes, void** device_view) override;
  void release_shared(void* pointer) noexcept override;
  void upload(void* to, const void* host, size_t bytes) override;
  void download(void* host, const void* from, size_t bytes) override;
  void copy(void* to, const void* from, size_t bytes) override;
  void zero(void* to, size_t bytes) override;
  void transpose(const Transpose& turn) override;
  void rope_rows(const RopeRows& rope) override;
  void gather_embeddings(const EmbeddingGather& gather) override;
  void cache_append(const CacheAppend& append) override;
  void cache_copy_row(const CacheRowCopy& copy) override;
  void cache_shift(const CacheShift& shift) override;
  void prepare_frame_job(const FrameJob& job) override;
  void decode_attention(const DecodeAttention& attention) override;
  void linear(const LinearStep& step, void* scratch) override;
  void sample_rows(const SampleStep& step) override;
  void advance_rows(const StepRows& step) override;
  void mark(int slot) override;
  void wait_for(int slot) override;
  void synchronize() override;
  std::unique_ptr<Recording> recording() override;

 private:
  // work(stream) with the stream's GPU as the calling thread's.
  template <typename Work>
  void on_stream(Work work);

  std::shared_ptr<Stream> stream_;
  Event marks_[2];
  std::mutex blocks_mutex_;  // blocks are let go by any thread
  std::map<void*, DeviceBuffer> blocks_;
  std::map<void*, PinnedBuffer> shared_blocks_;
};

}  // namespace qwen2vl::cuda
