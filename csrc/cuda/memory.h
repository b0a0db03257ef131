#pragma once

#include <cstddef>

#include "cuda/stream.h"

namespace qwen2vl::cuda {

// A block of device memory that is freed with the object. Its address never changes.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // Throws MemoryLimitError when the device has less to give. 0 bytes give a null address.
  explicit DeviceBuffer(size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;

  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t size() const { return size_; }  // bytes

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

// A block of host memory that never leaves RAM and that the device reads and writes at device_data(): what is
// small and changes hands each step, and tables of which few rows are read. Zeroed.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  explicit PinnedBuffer(size_t bytes);
  ~PinnedBuffer();
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;

  void* data() const { return data_; }
  void* device_data() const { return device_data_; }

 private:
  void* data_ = nullptr;
  void* device_data_ = nullptr;
};

// Queued copies, in bytes. Host memory that is not pinned is read before copy_to_device returns, and written
// before copy_to_host does.
void copy_to_device(void* device, const void* host, size_t bytes, const Stream& stream);
void copy_to_host(void* host, const void* device, size_t bytes, const Stream& stream);
void copy_on_device(void* to, const void* from, size_t bytes, const Stream& stream);
void fill_zero(void* device, size_t bytes, const Stream& stream);

}  // namespace qwen2vl::cuda
