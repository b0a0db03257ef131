#pragma once

#include <memory>

#include "cache/cache_rows.h"
#include "device/device.h"

namespace qwen2vl {

// The decoder's keys and values in a device's memory, allocated whole, in the engine's number format.
class DeviceCache : public CacheRows {
 public:
  // Throws InputError for sizes below 1 and for heads that are no multiple of 16 bytes, MemoryLimitError.
  DeviceCache(std::shared_ptr<Device> device, int64_t layers, int64_t rows, int64_t kv_heads,
              int64_t capacity, int64_t head_dim, FloatType type);

  // The device's address of keys (part 0) or values (part 1), [rows, kv_heads, capacity, head_dim].
  char* tensor(int64_t layer, int part) const;
  FloatType type() const { return type_; }
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }
  CacheLayout layout() const;

 private:
  void copy_positions(int64_t from, int64_t to, int64_t length) override;
  void zero_positions(int64_t row, int64_t length) override;
  void shift_positions(int64_t row, int64_t source, int64_t destination, int64_t count, const float* cos,
                       const float* sin) override;

  std::shared_ptr<Device> device_;
  FloatType type_;
  DeviceBlock memory_;  // [layers, 2, tensor_bytes]
  DeviceBlock turn_;    // cos and sin of a shift, [2, head_dim / 2]
};

}  // namespace qwen2vl
