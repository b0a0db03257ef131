#pragma once

#include <cstdint>
#include <string>

#include "common/mapped_memory.h"

namespace qwen2vl {

// kUInt8 is 8 bit with a scale and a zero point a block of a row.
enum class ElementType { kFloat32, kBFloat16, kFloat16, kUInt8 };

// Accepts "float32", "bfloat16", "float16" and "uint8"; throws InputError otherwise.
ElementType element_type_from_name(const std::string& name);
int64_t element_size(ElementType type);  // in bytes

// The token embedding table [rows, width], memory-mapped: only the pages of the rows in use take memory, and
// they are shared with other processes (and with the engine, when the model ties its output projection to
// this table).
class EmbeddingTable {
 public:
  // Row-major elements from byte `offset` of the file on; of kUInt8 the codes, with scales and zero points
  // behind them (docs/bundle-format.md). Throws BundleError when the file is too short.
  EmbeddingTable(const std::string& path, int64_t rows, int64_t width, ElementType type, int64_t offset = 0);

  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }

  ElementType type() const { return type_; }
  // The table as it is stored: elements [rows, width], and for kUInt8 float32 scales and uint8 zero points,
  // one a block of block_width() codes of a row (null otherwise). Not aligned.
  const std::byte* elements() const { return table_; }
  const std::byte* scales() const { return scales_; }
  const std::byte* zero_points() const { return zero_points_; }
  static int64_t block_width();

  // Writes the rows of `ids` [count] as float32, output [count, width]. Throws InputError for an id outside
  // the table, before anything is written.
  void gather(const int32_t* ids, int64_t count, float* output) const;

 private:
  // A kUInt8 table's scales [rows, blocks] and zero points [rows, blocks], one a block of 128 codes of a row
  // (the last block of a row may be shorter).
  void map_blocks(const std::string& path, int64_t offset);
  void gather_blocks(int64_t row, float* output) const;

  MappedMemory file_;
  const std::byte* table_;
  const std::byte* scales_ = nullptr;
  const std::byte* zero_points_ = nullptr;
  int64_t rows_, width_;
  ElementType type_;
};

}  // namespace qwen2vl
