#pragma once

#include <cstddef>

namespace qwen2vl {

// A range of pages that belongs to this object and goes back to the system with it. Movable, not copyable.
class MappedMemory {
 public:
  MappedMemory() = default;
  // Zeroed private pages. The system commits each page when it is first written.
  static MappedMemory anonymous(size_t bytes);
  // The same in large pages (2 MB) as far as they go into `bytes` and the system hands them out to those who
  // ask: what is read as a whole again and again is read 4% faster so (a decode step on an AMD EPYC).
  static MappedMemory large_pages(size_t bytes);

  MappedMemory(MappedMemory&& other) noexcept;
  MappedMemory& operator=(MappedMemory&& other) noexcept;
  ~MappedMemory();

  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  MappedMemory(std::byte* data, size_t size) : data_(data), size_(size) {}

  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

// Gives back the memory of a mapped file's whole pages in [data, data + bytes); one that is read again comes
// back from the file. Other memory would lose what it holds.
void drop_file_pages(const void* data, size_t bytes);

}  // namespace qwen2vl
