#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "accesses.h"
#include "cuda_runtime_api.h"
#include "launch.h"
#include "stream.h"

namespace emulated_cuda {

namespace {

constexpr size_t kTotalBytes = size_t{16} << 30, kAlignment = 256;
constexpr unsigned char kRubbish = 0xCB, kBehind = 0xA5;

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

}  // namespace

std::recursive_mutex& gpu() {
  static std::recursive_mutex mutex;
  return mutex;
}

Memory& Memory::one() {
  static auto* const memory = new Memory;  // what frees its blocks at exit comes after statics
  return *memory;
}

size_t Memory::total_bytes() { return kTotalBytes; }
size_t Memory::free_bytes() const { return kTotalBytes - used_; }

void* Memory::allocate(size_t bytes, Kind kind) {
  if (bytes > free_bytes()) return nullptr;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t aligned = rounded(bytes, kAlignment);
  Block block{nullptr, rounded(aligned, page), bytes, kind};
  void* const pages = mmap(nullptr, block.page_bytes + page, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) return nullptr;
  block.pages = static_cast<char*>(pages);
  mprotect(block.pages + block.page_bytes, page, PROT_NONE);
  char* const data = block.pages + block.page_bytes - aligned;
  // Large blocks stay zero: filling a cache of gigabytes that is never used would take them.
  if (bytes <= size_t{1} << 20) memset(data, kRubbish, bytes);
  memset(data + bytes, kBehind, aligned - bytes);
  if (kind == Kind::kDevice) {
    used_ += bytes;
    protect(block, openings_ > 0 || shared_);
  }
  blocks_.emplace(data, block);
  return data;
}

bool Memory::release(void* pointer, Kind kind) {
  const auto found = blocks_.find(static_cast<char*>(pointer));
  if (found == blocks_.end() || found->second.kind != kind) return false;
  const Block block = found->second;
  protect(block, true);
  const auto* const end = reinterpret_cast<unsigned char*>(block.pages + block.page_bytes);
  const bool intact = std::all_of(found->first + block.bytes, reinterpret_cast<const char*>(end),
                                  [](char byte) { return static_cast<unsigned char>(byte) == kBehind; });
  if (kind == Kind::kDevice) used_ -= block.bytes;
  accesses::forget(block.pages, block.page_bytes);
  blocks_.erase(found);
  // The addresses stay taken, so that a use after this is seen.
  mmap(block.pages, block.page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
       0);
  return intact;
}

const Memory::Block* Memory::find(const void* pointer) const {
  const auto* const address = static_cast<const char*>(pointer);
  auto found = blocks_.upper_bound(address);
  if (found == blocks_.begin()) return nullptr;
  --found;
  return address <= found->first + found->second.bytes ? &found->second : nullptr;
}

Kind Memory::kind(const void* pointer) const {
  const Block* const block = find(pointer);
  return block == nullptr ? Kind::kPageable : block->kind;
}

bool Memory::holds(const void* pointer, size_t bytes) const {
  const Block* const block = find(pointer);
  const char* const end =
      block == nullptr ? nullptr
                       : block->pages + block->page_bytes - rounded(block->bytes, kAlignment) + block->bytes;
  return block != nullptr && static_cast<const char*>(pointer) + bytes <= end;
}

void Memory::bounds(const void* address, const char** begin, const char** end) const {
  const auto* const at = static_cast<const char*>(address);
  auto found = blocks_.upper_bound(at);  // whose data are behind, in its first page's rest, or the one before
  if (found == blocks_.end() || at < found->second.pages) {
    if (found == blocks_.begin()) return;
    --found;
  }
  const Block& block = found->second;
  if (at >= block.pages + block.page_bytes) return;
  *begin = found->first;
  *end = found->first + block.bytes;
}

void Memory::protect(const Block& block, bool open) const {
  mprotect(block.pages, block.page_bytes, open ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void Memory::protect_all(bool open) const {
  for (const auto& [address, block] : blocks_) {
    if (block.kind == Kind::kDevice) protect(block, open);
  }
}

void Memory::share(bool shared) {
  shared_ = shared;
  protect_all(shared || openings_ > 0);
}

Memory::Open::Open() {
  Memory& memory = one();
  if (memory.openings_++ == 0 && !memory.shared_) memory.protect_all(true);
}

Memory::Open::~Open() {
  Memory& memory = one();
  if (--memory.openings_ == 0 && !memory.shared_) memory.protect_all(false);
}

bool addresses_device(const void* parameter, size_t bytes) {
  constexpr uintptr_t kSmallest = uintptr_t{1} << 40, kLargest = uintptr_t{1} << 47;
  const std::lock_guard<std::recursive_mutex> lock(gpu());
  if (Memory::one().shared()) return true;
  for (size_t at = 0; at + sizeof(uintptr_t) <= bytes; at += sizeof(uintptr_t)) {
    uintptr_t word;
    memcpy(&word, static_cast<const char*>(parameter) + at, sizeof(word));
    // A small number beside whatever padding holds is no address, either.
    if (word < kSmallest || word >= kLargest || static_cast<uint32_t>(word) < 4096) continue;
    if (Memory::one().kind(reinterpret_cast<void*>(word)) == Kind::kPageable) return false;
  }
  return true;
}

}  // namespace emulated_cuda

using emulated_cuda::fail;
using emulated_cuda::Kind;
using emulated_cuda::Memory;

namespace {

cudaError_t allocate(void** pointer, size_t bytes, Kind kind) {
  const std::lock_guard<std::recursive_mutex> lock(emulated_cuda::gpu());
  if (!emulated_cuda::may_call_unsafe()) return fail(cudaErrorStreamCaptureUnsupported);
  *pointer = Memory::one().allocate(bytes, kind);
  return *pointer == nullptr ? fail(cudaErrorMemoryAllocation) : cudaSuccess;
}

cudaError_t release(void* pointer, Kind kind) {
  const std::lock_guard<std::recursive_mutex> lock(emulated_cuda::gpu());
  if (pointer == nullptr) return cudaSuccess;
  if (!emulated_cuda::may_call_unsafe()) return fail(cudaErrorStreamCaptureUnsupported);
  emulated_cuda::finish_all();
  return Memory::one().release(pointer, kind) ? cudaSuccess : fail(cudaErrorIllegalAddress);
}

}  // namespace

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  if (!emulated_cuda::on_first_gpu()) return emulated_cuda::fail(cudaErrorMemoryAllocation);
  return allocate(pointer, bytes, Kind::kDevice);
}
cudaError_t cudaFree(void* pointer) { return release(pointer, Kind::kDevice); }
cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned) {
  return allocate(pointer, bytes, Kind::kPinned);
}
cudaError_t cudaFreeHost(void* pointer) { return release(pointer, Kind::kPinned); }

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  const std::lock_guard<std::recursive_mutex> lock(emulated_cuda::gpu());
  *free_bytes = Memory::one().free_bytes();
  *total_bytes = Memory::total_bytes();
  return cudaSuccess;
}
