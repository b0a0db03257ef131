#pragma once

#include "device/device.h"

namespace qwen2vl {

// The CPU as a device: the twin of every GPU, by which what runs there is tested without one.
class HostDevice : public Device {
 public:
  void* allocate(size_t bytes) override;
  void release(void* pointer) noexcept override;
  void* allocate_shared(size_t bytes, void** device_view) override;
  void release_shared(void* pointer) noexcept override { release(pointer); }
  void upload(void* to, const void* host, size_t bytes) override;
  void download(void* host, const void* from, size_t bytes) override;
  void copy(void* to, const void* from, size_t bytes) override;
  void zero(void* to, size_t bytes) override;
  void transpose(const Transpose& turn) override { cpu::transpose(turn); }
  void rope_rows(const RopeRows& rope) override { cpu::rope_rows(rope); }
  void gather_embeddings(const EmbeddingGather& gather) override { cpu::gather_embeddings(gather); }
  void cache_append(const CacheAppend& append) override { cpu::cache_append(append); }
  void cache_copy_row(const CacheRowCopy& copy) override { cpu::cache_copy_row(copy); }
  void cache_shift(const CacheShift& shift) override { cpu::cache_shift(shift); }
  void prepare_frame_job(const FrameJob& job) override { cpu::prepare_frame_job(job); }
  void decode_attention(const DecodeAttention& attention) override { cpu::decode_attention(attention); }
  void linear(const LinearStep& step, void*) override { cpu::linear(step); }
  void sample_rows(const SampleStep& step) override { cpu::sample_rows(step); }
  void advance_rows(const StepRows& step) override {
    for (int64_t i = 0; i < step.rows * kSampledWords; ++i) advance_row(step, i);
  }
  void mark(int) override {}
  void wait_for(int) override {}
  void synchronize() override {}
};

}  // namespace qwen2vl
