#include "device/host_device.h"

#include <cstring>
#include <new>

namespace qwen2vl {

namespace {

constexpr std::align_val_t kAlignment{256};  // bytes, as a GPU's allocations

}  // namespace

void* HostDevice::allocate(size_t bytes) {
  void* const memory = ::operator new[](bytes, kAlignment);
  std::memset(memory, 0, bytes);
  return memory;
}

void HostDevice::release(void* pointer) noexcept { ::operator delete[](pointer, kAlignment); }

void* HostDevice::allocate_shared(size_t bytes, void** device_view) { return *device_view = allocate(bytes); }

void HostDevice::upload(void* to, const void* host, size_t bytes) { copy(to, host, bytes); }

void HostDevice::download(void* host, const void* from, size_t bytes) { copy(host, from, bytes); }

void HostDevice::copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0) std::memmove(to, from, bytes);
}

void HostDevice::zero(void* to, size_t bytes) {
  if (bytes > 0) std::memset(to, 0, bytes);
}

}  // namespace qwen2vl
