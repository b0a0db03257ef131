#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "common/file.h"
#include "embedding/table_type.h"

namespace qwen2vl {

// The token embedding table [rows, width], whose rows are read from the file as they are asked for: only the
// system's page cache holds them. (A mapping of the file would hold 64 KB around each row that was ever used,
// and beside an engine that maps the table as a tied output projection, its pages would count twice.)
class EmbeddingTable {
 public:
  // The file holds row-major elements; of kUInt8Blocks the codes, with scales and zero points behind them
  // (docs/bundle-format.md). Throws BundleError when the file is too short.
  EmbeddingTable(const std::string& path, int64_t rows, int64_t width, TableType type);

  int64_t rows() const { return rows_; }
  int64_t width() const { return width_; }

  TableType type() const { return type_; }
  // Scales, and zero points, of a kUInt8Blocks table: one a block of block_width() codes of a row, the last
  // of which may be shorter. 0 of the others.
  int64_t blocks() const { return type_ == TableType::kUInt8Blocks ? rows_ * row_blocks_ : 0; }
  static int64_t block_width();

  // Copies the table as it is stored: elements [rows, width]; float32 scales and uint8 zero points
  // [blocks()].
  void copy(void* elements, void* scales, void* zero_points) const;

  // Writes the rows of `ids` [count] as float32, output [count, width]. Throws InputError for an id outside
  // the table, before anything is written.
  void gather(const int32_t* ids, int64_t count, float* output) const;

 private:
  void gather_row(int64_t row, std::byte* stored, float* output) const;
  void gather_blocks(int64_t row, std::byte* stored, float* output) const;

  File file_;
  int64_t rows_, width_, row_blocks_;
  TableType type_;
  int64_t scales_ = 0, zero_points_ = 0;  // where they begin in the file
};

}  // namespace qwen2vl
