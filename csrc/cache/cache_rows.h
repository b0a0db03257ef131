#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace qwen2vl {

// What the rows of a KV cache hold, wherever their memory is: one 64-bit identity a position. It is written
// together with the length, so that a prompt can be compared with the row's content, and a row that was cut,
// moved or abandoned can't be taken for something it is not. Contract: the engine writes positions
// [length, length + n) of a row, and only when that has succeeded does append() make them count. What lies
// beyond a row's length means nothing.
//
// Not thread-safe; `Lease` lets one user at a time in and refuses the others.
class CacheRows {
 public:
  virtual ~CacheRows() = default;
  CacheRows(const CacheRows&) = delete;
  CacheRows& operator=(const CacheRows&) = delete;

  int64_t layers() const { return layers_; }
  int64_t rows() const { return rows_; }
  int64_t kv_heads() const { return kv_heads_; }
  int64_t capacity() const { return capacity_; }
  int64_t head_dim() const { return head_dim_; }

  int64_t length(int64_t row) const;
  const std::vector<uint64_t>& identities(int64_t row) const;  // [length(row)]

  // Counts `count` more positions of the row as written. Throws InputError beyond the capacity.
  void append(int64_t row, const uint64_t* identities, int64_t count);
  // Cuts the row to its first `length` positions. Throws InputError when it holds fewer.
  void truncate(int64_t row, int64_t length);
  // Empties the row and zeroes what it held, and so many positions beyond. For rows with NaN in them: an
  // engine that multiplies masked positions by zero would carry it into later answers.
  void erase_row(int64_t row, int64_t beyond = 0);
  // Makes row `to` hold what `from` holds (a fork), or its first `length` positions; `from` stays as it is.
  void copy_row(int64_t from, int64_t to);
  void copy_row(int64_t from, int64_t to, int64_t length);
  // The same, and `from` is empty afterwards.
  void move_row(int64_t from, int64_t to);
  // Takes the positions [begin, end) out of a row and closes the gap; the keys behind it are turned as if
  // their rotary positions had changed by a shift. cos, sin [head_dim / 2] are of shift * frequency, the
  // shift being that of each column's axis. `identities` [length - end] are the moved positions' new ones.
  void remove(int64_t row, int64_t begin, int64_t end, const float* cos, const float* sin,
              const uint64_t* identities);

  // Held by whoever writes to the cache. Throws Error while another lease is alive.
  class Lease {
   public:
    explicit Lease(CacheRows& cache);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;

   private:
    CacheRows& cache_;
  };

 protected:
  // Throws InputError for sizes below 1 or a total beyond the address space. `element_size`: bytes of a
  // value.
  CacheRows(int64_t layers, int64_t rows, int64_t kv_heads, int64_t capacity, int64_t head_dim,
            int64_t element_size);

  // Bytes of one layer's keys, rounded up to whole pages.
  int64_t tensor_bytes() const { return tensor_bytes_; }
  void check_layer(int64_t layer) const;

 private:
  // The memory's part in what the public functions above do; all arguments are checked.
  virtual void copy_positions(int64_t from, int64_t to, int64_t length) = 0;
  virtual void zero_positions(int64_t row, int64_t length) = 0;
  virtual void shift_positions(int64_t row, int64_t source, int64_t destination, int64_t count,
                               const float* cos, const float* sin) = 0;

  void check_row(int64_t row) const;

  int64_t layers_, rows_, kv_heads_, capacity_, head_dim_;
  int64_t tensor_bytes_;
  std::vector<std::vector<uint64_t>> identities_;
  std::atomic<bool> leased_{false};
};

}  // namespace qwen2vl
