#include "embedding/embedding_table.h"

#include <algorithm>

#include "common/ceil_divide.h"
#include "common/error.h"
#include "common/half.h"
#include "common/parallel.h"
#include "common/scale_block.h"
#include "common/scratch.h"

namespace qwen2vl {

namespace {

constexpr int64_t kPage = 4096;  // each part of a table starts at a multiple of this

int64_t next_page(int64_t offset) { return ceil_divide(offset, kPage) * kPage; }

template <float (*widen)(uint16_t)>
void widen_row(const uint16_t* row, int64_t width, float* output) {
  for (int64_t i = 0; i < width; ++i) output[i] = widen(row[i]);
}

}  // namespace

EmbeddingTable::EmbeddingTable(const std::string& path, int64_t rows, int64_t width, TableType type)
    : file_(path), rows_(rows), width_(width), row_blocks_(ceil_divide(width, kScaleBlock)), type_(type) {
  if (rows < 1 || width < 1) {
    throw InputError("an embedding table of " + std::to_string(rows) + " rows of " + std::to_string(width) +
                     " makes no sense");
  }
  // Compared by division, so that no product of unchecked sizes can overflow.
  const int64_t available = file_.size();
  if (rows > available / element_size(type) / width) {
    throw BundleError(path + " holds " + std::to_string(available) + " bytes, too few for " +
                      std::to_string(rows) + " rows of " + std::to_string(width) + " values of " +
                      std::to_string(element_size(type)) + " bytes");
  }
  if (type != TableType::kUInt8Blocks) return;
  scales_ = next_page(rows * width);  // counts no larger than the table's, whose size is checked
  zero_points_ = next_page(scales_ + blocks() * static_cast<int64_t>(sizeof(float)));
  if (available < zero_points_ + blocks()) {
    throw BundleError(
        path + " holds " + std::to_string(available) + " bytes, too few for the scales and zero points of " +
        std::to_string(rows) + " rows of " + std::to_string(width) + " codes in blocks of " +
        std::to_string(kScaleBlock) + ": they end at byte " + std::to_string(zero_points_ + blocks()));
  }
}

int64_t EmbeddingTable::block_width() { return kScaleBlock; }

void EmbeddingTable::copy(void* elements, void* scales, void* zero_points) const {
  file_.read(0, rows_ * width_ * element_size(type_), elements);
  file_.read(scales_, blocks() * static_cast<int64_t>(sizeof(float)), scales);
  file_.read(zero_points_, blocks(), zero_points);
}

// As ONNX's DequantizeLinear: (code - zero point) * scale, the difference exact, the product rounded once.
void EmbeddingTable::gather_blocks(int64_t row, std::byte* stored, float* output) const {
  // Scales first: they lie aligned so.
  const int64_t scale_bytes = row_blocks_ * static_cast<int64_t>(sizeof(float));
  auto* scales = reinterpret_cast<float*>(stored);
  auto* zero_points = reinterpret_cast<uint8_t*>(stored + scale_bytes);
  uint8_t* codes = zero_points + row_blocks_;
  file_.read(scales_ + row * scale_bytes, scale_bytes, scales);
  file_.read(zero_points_ + row * row_blocks_, row_blocks_, zero_points);
  file_.read(row * width_, width_, codes);
  for (int64_t block = 0; block < row_blocks_; ++block) {
    const int64_t end = std::min(width_, (block + 1) * kScaleBlock);
    for (int64_t i = block * kScaleBlock; i < end; ++i) {
      output[i] = static_cast<float>(codes[i] - zero_points[block]) * scales[block];
    }
  }
}

// stored: room for what the file has of a row.
void EmbeddingTable::gather_row(int64_t row, std::byte* stored, float* output) const {
  const int64_t bytes = width_ * element_size(type_), at = row * bytes;
  switch (type_) {
    case TableType::kFloat32:
      file_.read(at, bytes, output);
      break;
    case TableType::kBFloat16:
      file_.read(at, bytes, stored);
      widen_row<bfloat16_to_float>(reinterpret_cast<const uint16_t*>(stored), width_, output);
      break;
    case TableType::kFloat16:
      file_.read(at, bytes, stored);
      widen_row<float16_to_float>(reinterpret_cast<const uint16_t*>(stored), width_, output);
      break;
    case TableType::kUInt8Blocks:
      gather_blocks(row, stored, output);
      break;
  }
}

void EmbeddingTable::gather(const int32_t* ids, int64_t count, float* output) const {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= rows_) {
      throw InputError("token id " + std::to_string(ids[i]) + " at position " + std::to_string(i) +
                       " is outside the vocabulary of " + std::to_string(rows_));
    }
  }
  const int64_t stored_bytes = width_ * element_size(type_) + row_blocks_ * 5;
  const auto gather_rows = [&](size_t begin, size_t end) {
    auto* stored = static_cast<std::byte*>(thread_scratch(stored_bytes));
    for (size_t i = begin; i < end; ++i) gather_row(ids[i], stored, output + i * width_);
  };
  // A slice worth a thread is some hundred microseconds: a quarter million values.
  parallel_for(count, std::max<int64_t>(1, (1 << 18) / width_), gather_rows);
}

}  // namespace qwen2vl
