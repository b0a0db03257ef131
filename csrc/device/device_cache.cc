#include "device/device_cache.h"

#include <string>
#include <utility>

#include "common/error.h"

namespace qwen2vl {

DeviceCache::DeviceCache(std::shared_ptr<Device> device, int64_t layers, int64_t rows, int64_t kv_heads,
                         int64_t capacity, int64_t head_dim, FloatType type)
    : CacheRows(layers, rows, kv_heads, capacity, head_dim, float_size(type)),
      device_(std::move(device)),
      type_(type) {
  if (head_dim * float_size(type) % 16 != 0) {
    throw InputError("heads of " + std::to_string(head_dim * float_size(type)) +
                     " bytes: a device's KV cache takes multiples of 16");
  }
  memory_ = DeviceBlock(device_, 2 * layers * tensor_bytes());
  turn_ = DeviceBlock(device_, head_dim * sizeof(float));
}

char* DeviceCache::tensor(int64_t layer, int part) const {
  check_layer(layer);
  return memory_.as<char>() + (2 * layer + part) * tensor_bytes();
}

CacheLayout DeviceCache::layout() const {
  return {memory_.as<char>(), tensor_bytes(), layers(), rows(), kv_heads(), capacity(), head_dim(), type_};
}

void DeviceCache::copy_positions(int64_t from, int64_t to, int64_t length) {
  device_->cache_copy_row({layout(), from, to, length});
}

void DeviceCache::zero_positions(int64_t row, int64_t length) {
  const CacheLayout cache = layout();
  for (int64_t unit = 0; unit < 2 * layers() * kv_heads(); ++unit) {
    device_->zero(cache_head(cache, unit, row), length * head_dim() * float_size(type_));
  }
}

void DeviceCache::shift_positions(int64_t row, int64_t source, int64_t destination, int64_t count,
                                  const float* cos, const float* sin) {
  const int64_t half = head_dim() / 2;
  float* const turn = turn_.as<float>();
  device_->upload(turn, cos, half * sizeof(float));
  device_->upload(turn + half, sin, half * sizeof(float));
  device_->cache_shift({layout(), row, source, destination, count, turn, turn + half});
}

}  // namespace qwen2vl
