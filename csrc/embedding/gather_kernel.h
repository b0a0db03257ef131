#pragma once

#include <cstdint>

#include "common/float_type.h"
#include "common/host_device.h"
#include "embedding/table_type.h"

struct CUstream_st;

namespace qwen2vl {

// A table [rows, width] somewhere in memory: on the host, in host memory that the GPU reads, or on the GPU.
struct TableView {
  const void* data;
  const float* scale;         // [rows, blocks of a row], 8-bit only
  const uint8_t* zero_point;  // as scale
  int64_t rows, width;
  int64_t block;  // values that share a scale
  TableType type;
};

// The decoder's input: the table's rows for text, visual embeddings at pads.
struct EmbeddingGather {
  TableView table;
  const int32_t* ids;               // [count], within the table (where visual_rows is null)
  const float* const* visual_rows;  // [count], each null or [width]; null when there are no visuals
  int64_t count;
  FloatType type;
  void* output;  // [count, width]
};

QWEN2VL_HOST_DEVICE float table_value(const TableView& table, int64_t row, int64_t column) {
  const int64_t at = row * table.width + column;
  if (table.type == TableType::kUInt8Blocks) {
    const int64_t blocks = (table.width + table.block - 1) / table.block;
    const int64_t block = row * blocks + column / table.block;
    const int code = static_cast<const uint8_t*>(table.data)[at];
    return static_cast<float>(code - table.zero_point[block]) * table.scale[block];
  }
  return load_float(table.data, static_cast<FloatType>(table.type), at);
}

QWEN2VL_HOST_DEVICE void gather_element(const EmbeddingGather& gather, int64_t index) {
  const int64_t token = index / gather.table.width, column = index % gather.table.width;
  const float* const visual = gather.visual_rows == nullptr ? nullptr : gather.visual_rows[token];
  const float value =
      visual != nullptr ? visual[column] : table_value(gather.table, gather.ids[token], column);
  store_float(gather.output, gather.type, index, value);
}

namespace cpu {
void gather_embeddings(const EmbeddingGather& gather);
}
namespace cuda {
void gather_embeddings(const EmbeddingGather& gather, CUstream_st* stream);
}

}  // namespace qwen2vl
