#pragma once

#include <cstddef>
#include <memory>

#include "common/aligned_buffer.h"

namespace qwen2vl {

// Working memory, aligned to 64 bytes, that grows to the largest size asked for and is kept: a decode step
// allocates nothing.
class Scratch {
 public:
  void* reserve(size_t bytes) {
    if (buffer_ == nullptr || buffer_->size() < bytes) {
      buffer_.reset();
      buffer_ = std::make_unique<AlignedBuffer<char>>(bytes);
    }
    return buffer_->data();
  }

 private:
  std::unique_ptr<AlignedBuffer<char>> buffer_;
};

// This thread's, for what it computes.
inline void* thread_scratch(size_t bytes) {
  static thread_local Scratch scratch;
  return scratch.reserve(bytes);
}

// This thread's, for what it hands out to others.
inline void* shared_scratch(size_t bytes) {
  static thread_local Scratch scratch;
  return scratch.reserve(bytes);
}

}  // namespace qwen2vl
