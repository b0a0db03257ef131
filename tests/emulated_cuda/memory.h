#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace emulated_cuda {

// The lock of the whole emulated GPU: held by every call, and while queued work runs.
std::recursive_mutex& gpu();

enum class Kind { kDevice, kPinned, kPageable };

// The device's memory, and host memory that it sees. A block ends at a page that nobody may touch, device
// memory can be touched only while an `Open` lives, and no address is used twice.
class Memory {
 public:
  static Memory& one();

  // Null when there is too little. Filled with rubbish.
  void* allocate(size_t bytes, Kind kind);
  // False for what is no block of this kind, or was written behind its end.
  bool release(void* pointer, Kind kind);
  Kind kind(const void* pointer) const;
  // What may be touched of the block whose pages an address is in, if it is in one.
  void bounds(const void* address, const char** begin, const char** end) const;
  // Whether [pointer, pointer + bytes) lies in one block.
  bool holds(const void* pointer, size_t bytes) const;
  size_t free_bytes() const;
  static size_t total_bytes();

  // From here on the host may read and write the device's memory, and work runs as soon as it is queued:
  // for engines that compute on the CPU in the place of a GPU's.
  void share(bool shared);
  bool shared() const { return shared_; }

  // Opens the device's memory to the kernels and copies that run.
  class Open {
   public:
    Open();
    ~Open();
    Open(const Open&) = delete;
    Open& operator=(const Open&) = delete;
  };

 private:
  struct Block {
    char* pages;
    size_t page_bytes;
    size_t bytes;
    Kind kind;
  };
  const Block* find(const void* pointer) const;
  void protect(const Block& block, bool open) const;
  void protect_all(bool open) const;

  std::map<const char*, Block> blocks_;  // by address
  size_t used_ = 0;
  int openings_ = 0;
  bool shared_ = false;
};

}  // namespace emulated_cuda
