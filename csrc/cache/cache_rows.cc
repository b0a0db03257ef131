#include "cache/cache_rows.h"

#include <algorithm>
#include <string>

#include "common/error.h"

namespace qwen2vl {

namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kMaxBytes = int64_t{1} << 46;  // 64 TiB, half of a process' address space

// product * factor, or an InputError beyond kMaxBytes.
int64_t checked_product(int64_t product, int64_t factor, const char* name) {
  if (factor < 1)
    throw InputError("the KV cache's " + std::string(name) + " must be at least 1, got " +
                     std::to_string(factor));
  if (product > kMaxBytes / factor) throw InputError("the KV cache would exceed the address space");
  return product * factor;
}

}  // namespace

CacheRows::CacheRows(int64_t layers, int64_t rows, int64_t kv_heads, int64_t capacity, int64_t head_dim,
                     int64_t element_size)
    : layers_(layers), rows_(rows), kv_heads_(kv_heads), capacity_(capacity), head_dim_(head_dim) {
  int64_t bytes = element_size;
  bytes = checked_product(bytes, rows, "rows");
  bytes = checked_product(bytes, kv_heads, "kv_heads");
  bytes = checked_product(bytes, capacity, "capacity");
  bytes = checked_product(bytes, head_dim, "head_dim");
  tensor_bytes_ = (bytes + kPage - 1) / kPage * kPage;
  checked_product(2 * tensor_bytes_, layers, "layers");
  identities_.resize(rows);
  for (auto& row : identities_) row.reserve(capacity);  // so that append() never allocates
}

void CacheRows::check_layer(int64_t layer) const {
  if (layer < 0 || layer >= layers_) {
    throw InputError("layer " + std::to_string(layer) + " of a KV cache with " + std::to_string(layers_));
  }
}

void CacheRows::check_row(int64_t row) const {
  if (row < 0 || row >= rows_) {
    throw InputError("row " + std::to_string(row) + " of a KV cache with " + std::to_string(rows_));
  }
}

int64_t CacheRows::length(int64_t row) const { return static_cast<int64_t>(identities(row).size()); }

const std::vector<uint64_t>& CacheRows::identities(int64_t row) const {
  check_row(row);
  return identities_[row];
}

void CacheRows::append(int64_t row, const uint64_t* identities, int64_t count) {
  check_row(row);
  if (count < 0 || count > capacity_ - length(row)) {
    throw InputError("row " + std::to_string(row) + " holds " + std::to_string(length(row)) + " of " +
                     std::to_string(capacity_) + " positions: " + std::to_string(count) + " more don't fit");
  }
  identities_[row].insert(identities_[row].end(), identities, identities + count);
}

void CacheRows::truncate(int64_t row, int64_t length) {
  check_row(row);
  if (length < 0 || length > this->length(row)) {
    throw InputError("cannot truncate row " + std::to_string(row) + " of " +
                     std::to_string(this->length(row)) + " positions to " + std::to_string(length));
  }
  identities_[row].resize(length);
}

void CacheRows::erase_row(int64_t row, int64_t beyond) {
  zero_positions(row, std::min(length(row) + beyond, capacity_));
  truncate(row, 0);
}

void CacheRows::copy_row(int64_t from, int64_t to) { copy_row(from, to, length(from)); }

void CacheRows::copy_row(int64_t from, int64_t to, int64_t length) {
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
  if (length > 0) copy_positions(from, to, length);
  identities_[to].assign(identities_[from].begin(), identities_[from].begin() + length);
}

void CacheRows::move_row(int64_t from, int64_t to) {
  copy_row(from, to);
  if (from != to) truncate(from, 0);
}

void CacheRows::remove(int64_t row, int64_t begin, int64_t end, const float* cos, const float* sin,
                       const uint64_t* identities) {
  const int64_t length = this->length(row);
  if (begin < 0 || begin > end || end > length) {
    throw InputError("cannot remove positions " + std::to_string(begin) + ".." + std::to_string(end) +
                     " of row " + std::to_string(row) + ", which holds " + std::to_string(length));
  }
  if (length > end) shift_positions(row, end, begin, length - end, cos, sin);
  identities_[row].resize(begin);
  identities_[row].insert(identities_[row].end(), identities, identities + (length - end));
}

CacheRows::Lease::Lease(CacheRows& cache) : cache_(cache) {
  if (cache_.leased_.exchange(true)) {
    throw Error("this KV cache is in use by a generation that is still running: wait until it returns");
  }
}

CacheRows::Lease::~Lease() { cache_.leased_ = false; }

}  // namespace qwen2vl
