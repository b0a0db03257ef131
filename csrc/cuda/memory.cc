#include "cuda/memory.h"

#include <cuda_runtime_api.h>

#include <cstring>
#include <string>
#include <utility>

#include "cuda/capabilities.h"
#include "cuda/error.h"
#include "cuda/ignore_other_recordings.h"

namespace qwen2vl::cuda {

DeviceBuffer::DeviceBuffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  const IgnoreOtherRecordings guard;
  check(cudaMalloc(&data_, bytes), ("allocating " + std::to_string(bytes) + " bytes on the GPU").c_str());
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ == nullptr) return;
  const IgnoreOtherRecordings guard;
  cudaFree(data_);
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

PinnedBuffer::PinnedBuffer(size_t bytes) {
  if (bytes == 0) return;
  const IgnoreOtherRecordings guard;
  check(cudaHostAlloc(&data_, bytes, cudaHostAllocMapped),
        ("allocating " + std::to_string(bytes) + " bytes of pinned host memory").c_str());
  std::memset(data_, 0, bytes);
  const cudaError_t status = cudaHostGetDevicePointer(&device_data_, data_, 0);
  if (status != cudaSuccess) {
    cudaFreeHost(data_);
    check(status, "mapping host memory into the GPU's addresses");
  }
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ == nullptr) return;
  const IgnoreOtherRecordings guard;
  cudaFreeHost(data_);
}

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept { *this = std::move(other); }

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(device_data_, other.device_data_);
  return *this;
}

void copy_to_device(void* device, const void* host, size_t bytes, const Stream& stream) {
  if (bytes == 0) return;
  const IgnoreOtherRecordings guard;
  check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream.handle()), "copying to the GPU");
  if (capabilities().reads_pageable) stream.synchronize();
}

void copy_to_host(void* host, const void* device, size_t bytes, const Stream& stream) {
  if (bytes == 0) return;
  const IgnoreOtherRecordings guard;
  check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream.handle()),
        "copying from the GPU");
}

void copy_on_device(void* to, const void* from, size_t bytes, const Stream& stream) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.handle()), "copying on the GPU");
}

void fill_zero(void* device, size_t bytes, const Stream& stream) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(device, 0, bytes, stream.handle()), "clearing memory of the GPU");
}

}  // namespace qwen2vl::cuda
