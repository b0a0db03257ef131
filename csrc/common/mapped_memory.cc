#include "common/mapped_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "common/error.h"

namespace qwen2vl {

MappedMemory MappedMemory::anonymous(size_t bytes) {
  if (bytes == 0) return {};
  void* pages =
      mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) {
    throw Error("cannot reserve " + std::to_string(bytes >> 20) + " MiB of memory: " + std::strerror(errno));
  }
  return {static_cast<std::byte*>(pages), bytes};
}

MappedMemory MappedMemory::large_pages(size_t bytes) {
  constexpr uintptr_t kLargePage = 2 << 20;
  if (bytes < kLargePage) return anonymous(bytes);
  // A large page begins at a multiple of its size: what lies before and behind such a range is given back.
  MappedMemory around = anonymous(bytes + kLargePage);
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(around.data_), last = first + around.size_;
  const uintptr_t begin = (first + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t end = (begin + bytes + page - 1) / page * page;
  if (begin > first) munmap(reinterpret_cast<void*>(first), begin - first);
  if (last > end) munmap(reinterpret_cast<void*>(end), last - end);
  around.data_ = reinterpret_cast<std::byte*>(begin);
  around.size_ = bytes;
#ifdef MADV_HUGEPAGE
  madvise(around.data_, bytes, MADV_HUGEPAGE);
#endif
  return around;
}

MappedMemory::MappedMemory(MappedMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedMemory& MappedMemory::operator=(MappedMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) munmap(data_, size_);
}

void drop_file_pages(const void* data, size_t bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(data) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace qwen2vl
