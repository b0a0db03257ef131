#pragma once

#include <cstdint>
#include <string>

namespace qwen2vl {

// A regular file that is open for reading. Neither copyable nor movable.
class File {
 public:
  // Throws BundleError when it cannot be opened, is no regular file, or is empty.
  explicit File(const std::string& path);
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File();

  int64_t size() const { return size_; }

  // Copies the bytes [offset, offset + bytes). From any thread. Throws BundleError when the file has become
  // shorter or cannot be read.
  void read(int64_t offset, int64_t bytes, void* to) const;

 private:
  const std::string path_;
  const int descriptor_;
  int64_t size_ = 0;
};

}  // namespace qwen2vl
