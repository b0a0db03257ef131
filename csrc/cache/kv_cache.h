#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "common/mapped_memory.h"

namespace qwen2vl {

// The decoder's keys and values, float32, in place for the whole life of a session: `rows` sequences of at
// most `capacity` positions. Layer i has keys [rows, kv_heads, capacity, head_dim] and values of the same
// shape. A page of memory is committed when the engine first writes to it, so a large capacity costs nothing
// by itself.
//
// A row also remembers what it holds: one 64-bit identity a position. It is written together with the length,
// so that a prompt can be compared with the row's content, and a row that was cut, moved or abandoned can't
// be taken for something it is not. Contract: the engine writes positions [length, length + n) of a row, and
// only when that has succeeded does append() make them count. What lies beyond a row's length means nothing.
//
// Not thread-safe; `Lease` lets one user at a time in and refuses the others.
class KVCache {
 public:
  // Throws InputError for sizes below 1 or a total beyond the address space, Error when memory cannot be
  // reserved.
  KVCache(int64_t layers, int64_t rows, int64_t kv_heads, int64_t capacity, int64_t head_dim);

  int64_t layers() const { return layers_; }
  int64_t rows() const { return rows_; }
  int64_t kv_heads() const { return kv_heads_; }
  int64_t capacity() const { return capacity_; }
  int64_t head_dim() const { return head_dim_; }
  // Address space of all keys and values; what is committed grows towards it as positions are written.
  int64_t bytes() const { return static_cast<int64_t>(memory_.size()); }

  float* keys(int64_t layer) const;    // [rows, kv_heads, capacity, head_dim]
  float* values(int64_t layer) const;  // [rows, kv_heads, capacity, head_dim]

  int64_t length(int64_t row) const;
  const std::vector<uint64_t>& identities(int64_t row) const;  // [length(row)]

  // Counts `count` more positions of the row as written. Throws InputError beyond the capacity.
  void append(int64_t row, const uint64_t* identities, int64_t count);
  // Cuts the row to its first `length` positions. Throws InputError when it holds fewer.
  void truncate(int64_t row, int64_t length);
  // Empties the row and zeroes what it held. For rows with NaN in them: an engine that multiplies masked
  // positions by zero would carry it into later answers.
  void erase_row(int64_t row);
  // Makes row `to` hold what `from` holds (a fork), or its first `length` positions; `from` stays as it is.
  void copy_row(int64_t from, int64_t to);
  void copy_row(int64_t from, int64_t to, int64_t length);
  // The same, and `from` is empty afterwards.
  void move_row(int64_t from, int64_t to);

  // Held by whoever writes to the cache. Throws Error while another lease is alive.
  class Lease {
   public:
    explicit Lease(KVCache& cache);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

   private:
    KVCache& cache_;
  };

 private:
  void check_row(int64_t row) const;

  int64_t layers_, rows_, kv_heads_, capacity_, head_dim_;
  int64_t tensor_bytes_;  // of one layer's keys, rounded up to whole pages
  MappedMemory memory_;   // [layers, 2, tensor_bytes_]
  std::vector<std::vector<uint64_t>> identities_;
  std::atomic<bool> leased_{false};
};

}  // namespace qwen2vl
