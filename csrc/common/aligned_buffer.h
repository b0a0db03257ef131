#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace qwen2vl {

// A fixed block of `size` values, not initialised, on a border that vector instructions and engines like.
template <typename T>
class AlignedBuffer {
 public:
  static constexpr std::align_val_t kAlignment{64};  // bytes

  explicit AlignedBuffer(size_t size)
      : data_(static_cast<T*>(::operator new[](size * sizeof(T), kAlignment))), size_(size) {}

  T* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(T* data) const { ::operator delete[](data, kAlignment); }
  };
  std::unique_ptr<T[], Free> data_;
  size_t size_;
};

}  // namespace qwen2vl
