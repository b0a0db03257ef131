#pragma once

#include <cstdint>
#include <string>

namespace qwen2vl {

// A regular file that is open for reading. Movable, not copyable.
class File {
 public:
  // Throws BundleError when it cannot be opened, is no regular file, or is empty.
  explicit File(const std::string& path);
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  int descriptor() const { return descriptor_; }
  int64_t size() const { return size_; }

  // Copies the bytes [offset, offset + bytes). From any thread. Throws BundleError when the file has become
  // shorter or cannot be read.
  void read(int64_t offset, int64_t bytes, void* to) const;

 private:
  std::string path_;
  int descriptor_ = -1;
  int64_t size_ = 0;
};

}  // namespace qwen2vl
