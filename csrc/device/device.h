#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "attention/decode_attention.h"
#include "cache/cache_kernels.h"
#include "device/transpose.h"
#include "embedding/gather_kernel.h"
#include "image/frame_kernel.h"
#include "linear/device_linear.h"
#include "rope/rope_kernel.h"
#include "sampling/sample_kernel.h"

namespace qwen2vl {

// What an engine's fixed buffers hold of a decode step's rows besides embeddings and tables: each row's past
// length, in the forms that engines ask for, and the token's rotary position.
struct StepRows {
  int64_t rows;
  int64_t* past_length;     // [rows], positions that the row's cache holds before the step
  int64_t* present_length;  // [rows], the same and this step's tokens
  int32_t* last_position;   // [rows], present_length - 1
  int64_t* position;        // [rows], rotary position of the row's token
  int32_t* ids;             // [rows], the row's token
  const SampledRow* sampled;
  SampledRow* results;  // [rows], what was sampled, where the host reads it
};

// What is done after a step, by as many threads as the results have words; each copies one.
constexpr int64_t kSampledWords = sizeof(SampledRow) / sizeof(uint32_t);
static_assert(sizeof(SampledRow) % sizeof(uint32_t) == 0);

// And one a row lets it go on with the token that was chosen for it.
QWEN2VL_HOST_DEVICE void advance_row(const StepRows& step, int64_t index) {
  reinterpret_cast<uint32_t*>(step.results)[index] = reinterpret_cast<const uint32_t*>(step.sampled)[index];
  if (index % kSampledWords != 0) return;
  const int64_t row = index / kSampledWords;
  step.ids[row] = step.sampled[row].status == 0 ? step.sampled[row].id : 0;
  step.past_length[row] += 1;
  step.present_length[row] = step.past_length[row] + 1;
  step.last_position[row] = static_cast<int32_t>(step.past_length[row]);
  step.position[row] += 1;
}

// Work recorded once and run as a whole from then on; what it reads from memory is not recorded. This one is
// that of a device that has no use for recordings: it never has any.
class Recording {
 public:
  virtual ~Recording() = default;

  // Queues the recorded work; false where there is none.
  virtual bool replay() { return false; }
  // Work queued between begin() and end(), which runs it, is recorded.
  virtual void begin() {}
  virtual void end() {}
  // Forgets it, after something went wrong between begin() and end().
  virtual void abandon() noexcept {}
};

// Where a decoder's data lie and its kernels run, in order of the calls: a GPU with a stream, or the CPU,
// whose calls return when the work is done. Pointers that the kernels take are the device's.
class Device : public std::enable_shared_from_this<Device> {
 public:
  virtual ~Device() = default;

  // Throws MemoryLimitError. Zeroed.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* pointer) noexcept = 0;
  // Host memory that the device reads and writes at *device_view. Zeroed.
  virtual void* allocate_shared(size_t bytes, void** device_view) = 0;
  virtual void release_shared(void* pointer) noexcept = 0;

  // `host` may change when upload returns (unless it is shared memory: then when the device has read it).
  virtual void upload(void* to, const void* host, size_t bytes) = 0;
  virtual void download(void* host, const void* from, size_t bytes) = 0;  // waits
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void zero(void* to, size_t bytes) = 0;

  virtual void transpose(const Transpose& turn) = 0;
  virtual void rope_rows(const RopeRows& rope) = 0;
  virtual void gather_embeddings(const EmbeddingGather& gather) = 0;
  virtual void cache_append(const CacheAppend& append) = 0;
  virtual void cache_copy_row(const CacheRowCopy& copy) = 0;
  virtual void cache_shift(const CacheShift& shift) = 0;
  virtual void prepare_frame_job(const FrameJob& job) = 0;
  virtual void decode_attention(const DecodeAttention& attention) = 0;
  // scratch: linear_scratch_bytes(step).
  virtual void linear(const LinearStep& step, void* scratch) = 0;
  virtual void sample_rows(const SampleStep& step) = 0;
  virtual void advance_rows(const StepRows& step) = 0;

  // Marks the point in the work queued so far, and waits until mark `slot` (0 or 1) is reached.
  virtual void mark(int slot) = 0;
  virtual void wait_for(int slot) = 0;
  // Waits for everything. Throws DeviceError when something failed.
  virtual void synchronize() = 0;

  // A new recording of this device's work, still empty.
  virtual std::unique_ptr<Recording> recording() { return std::make_unique<Recording>(); }
};

// A block of a device's memory that lives as long as the object.
class DeviceBlock {
 public:
  DeviceBlock() = default;
  DeviceBlock(std::shared_ptr<Device> device, size_t bytes)
      : device_(std::move(device)), data_(device_->allocate(bytes)), size_(bytes) {}
  ~DeviceBlock() {
    if (device_) device_->release(data_);
  }
  DeviceBlock(DeviceBlock&& other) noexcept { *this = std::move(other); }
  DeviceBlock& operator=(DeviceBlock&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  template <typename T = char>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t size() const { return size_; }
  const std::shared_ptr<Device>& device() const { return device_; }

 private:
  std::shared_ptr<Device> device_;
  void* data_ = nullptr;
  size_t size_ = 0;
};

// A block of host memory that the device sees, too.
class SharedBlock {
 public:
  SharedBlock() = default;
  SharedBlock(std::shared_ptr<Device> device, size_t bytes)
      : device_(std::move(device)), data_(device_->allocate_shared(bytes, &view_)), size_(bytes) {}
  ~SharedBlock() {
    if (device_) device_->release_shared(data_);
  }
  SharedBlock(SharedBlock&& other) noexcept { *this = std::move(other); }
  SharedBlock& operator=(SharedBlock&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(view_, other.view_);
    std::swap(size_, other.size_);
    return *this;
  }

  template <typename T = char>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <typename T = char>
  T* on_device() const {
    return static_cast<T*>(view_);
  }
  size_t size() const { return size_; }

 private:
  std::shared_ptr<Device> device_;
  void* view_ = nullptr;  // before data_, whose allocation sets it
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace qwen2vl
