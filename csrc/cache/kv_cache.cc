#include "cache/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "common/error.h"
#include "common/parallel.h"

namespace qwen2vl {

namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kMaxBytes = int64_t{1} << 46;  // 64 TiB, half of a process' address space

// factor * other, or an InputError beyond kMaxBytes.
int64_t checked_product(int64_t product, int64_t factor, const char* name) {
  if (factor < 1)
    throw InputError("the KV cache's " + std::string(name) + " must be at least 1, got " +
                     std::to_string(factor));
  if (product > kMaxBytes / factor) throw InputError("the KV cache would exceed the address space");
  return product * factor;
}

}  // namespace

KVCache::KVCache(int64_t layers, int64_t rows, int64_t kv_heads, int64_t capacity, int64_t head_dim)
    : layers_(layers), rows_(rows), kv_heads_(kv_heads), capacity_(capacity), head_dim_(head_dim) {
  int64_t bytes = sizeof(float);
  bytes = checked_product(bytes, rows, "rows");
  bytes = checked_product(bytes, kv_heads, "kv_heads");
  bytes = checked_product(bytes, capacity, "capacity");
  bytes = checked_product(bytes, head_dim, "head_dim");
  tensor_bytes_ = (bytes + kPage - 1) / kPage * kPage;
  memory_ = MappedMemory::anonymous(2 * checked_product(tensor_bytes_, layers, "layers"));
  identities_.resize(rows);
  for (auto& row : identities_) row.reserve(capacity);  // so that append() never allocates
}

float* KVCache::keys(int64_t layer) const {
  if (layer < 0 || layer >= layers_) {
    throw InputError("layer " + std::to_string(layer) + " of a KV cache with " + std::to_string(layers_));
  }
  return reinterpret_cast<float*>(memory_.data() + 2 * layer * tensor_bytes_);
}

float* KVCache::values(int64_t layer) const {
  return reinterpret_cast<float*>(reinterpret_cast<std::byte*>(keys(layer)) + tensor_bytes_);
}

void KVCache::check_row(int64_t row) const {
  if (row < 0 || row >= rows_) {
    throw InputError("row " + std::to_string(row) + " of a KV cache with " + std::to_string(rows_));
  }
}

int64_t KVCache::length(int64_t row) const { return static_cast<int64_t>(identities(row).size()); }

const std::vector<uint64_t>& KVCache::identities(int64_t row) const {
  check_row(row);
  return identities_[row];
}

void KVCache::append(int64_t row, const uint64_t* identities, int64_t count) {
  check_row(row);
  if (count < 0 || count > capacity_ - length(row)) {
    throw InputError("row " + std::to_string(row) + " holds " + std::to_string(length(row)) + " of " +
                     std::to_string(capacity_) + " positions: " + std::to_string(count) + " more don't fit");
  }
  identities_[row].insert(identities_[row].end(), identities, identities + count);
}

void KVCache::truncate(int64_t row, int64_t length) {
  check_row(row);
  if (length < 0 || length > this->length(row)) {
    throw InputError("cannot truncate row " + std::to_string(row) + " of " +
                     std::to_string(this->length(row)) + " positions to " + std::to_string(length));
  }
  identities_[row].resize(length);
}

void KVCache::erase_row(int64_t row) {
  const int64_t used = length(row) * head_dim_;
  for (int64_t layer = 0; layer < layers_; ++layer) {
    for (float* tensor : {keys(layer), values(layer)}) {
      for (int64_t head = 0; head < kv_heads_; ++head) {
        std::fill_n(tensor + (row * kv_heads_ + head) * capacity_ * head_dim_, used, 0.0f);
      }
    }
  }
  truncate(row, 0);
}

void KVCache::copy_row(int64_t from, int64_t to) { copy_row(from, to, length(from)); }

void KVCache::copy_row(int64_t from, int64_t to, int64_t length) {
  check_row(from);
  check_row(to);
  if (length < 0 || length > this->length(from)) {
    throw InputError("row " + std::to_string(from) + " holds " + std::to_string(this->length(from)) +
                     " positions, cannot copy " + std::to_string(length));
  }
  if (from == to) {
    truncate(to, length);
    return;
  }
  const int64_t head_stride = capacity_ * head_dim_;
  const int64_t used = length * head_dim_;  // the written positions of a head lie side by side
  // One unit of work: one head of one layer, keys and values.
  const auto copy_heads = [&](size_t begin, size_t end) {
    for (size_t unit = begin; unit < end; ++unit) {
      const auto layer = static_cast<int64_t>(unit) / kv_heads_;
      const auto head = static_cast<int64_t>(unit) % kv_heads_;
      for (float* tensor : {keys(layer), values(layer)}) {
        std::memcpy(tensor + (to * kv_heads_ + head) * head_stride,
                    tensor + (from * kv_heads_ + head) * head_stride, used * sizeof(float));
      }
    }
  };
  if (used > 0) {
    // A slice worth a thread copies about a megabyte.
    const int64_t grain = std::max<int64_t>(1, (1 << 17) / used);
    parallel_for(layers_ * kv_heads_, grain, copy_heads);
  }
  identities_[to].assign(identities_[from].begin(), identities_[from].begin() + length);
}

void KVCache::move_row(int64_t from, int64_t to) {
  copy_row(from, to);
  if (from != to) truncate(from, 0);
}

KVCache::Lease::Lease(KVCache& cache) : cache_(cache) {
  if (cache_.leased_.exchange(true)) {
    throw Error("this KV cache is in use by a generation that is still running: wait until it returns");
  }
}

KVCache::Lease::~Lease() { cache_.leased_ = false; }

}  // namespace qwen2vl
