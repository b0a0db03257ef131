#include "embedding/embedding_table.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "common/error.h"
#include "common/parallel.h"
#include "embedding/half.h"

namespace qwen2vl {

namespace {

constexpr int64_t kBlock = 128;  // codes of a row that share a scale
constexpr int64_t kPage = 4096;  // each part of a table starts at a multiple of this

int64_t blocks_of(int64_t width) { return (width + kBlock - 1) / kBlock; }
int64_t next_page(int64_t offset) { return (offset + kPage - 1) / kPage * kPage; }

// Widens one row; reads through memcpy, since the table may begin at any byte of the file.
template <float (*widen)(uint16_t)>
void widen_row(const std::byte* row, int64_t width, float* output) {
  for (int64_t i = 0; i < width; ++i) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * i, sizeof(bits));
    output[i] = widen(bits);
  }
}

}  // namespace

ElementType element_type_from_name(const std::string& name) {
  if (name == "float32") return ElementType::kFloat32;
  if (name == "bfloat16") return ElementType::kBFloat16;
  if (name == "float16") return ElementType::kFloat16;
  if (name == "uint8") return ElementType::kUInt8;
  throw InputError("unknown element type '" + name + "', expected float32, bfloat16, float16 or uint8");
}

int64_t element_size(ElementType type) {
  switch (type) {
    case ElementType::kFloat32:
      return 4;
    case ElementType::kUInt8:
      return 1;
    default:
      return 2;
  }
}

EmbeddingTable::EmbeddingTable(const std::string& path, int64_t rows, int64_t width, ElementType type,
                               int64_t offset)
    : file_(MappedMemory::file(path)), rows_(rows), width_(width), type_(type) {
  if (rows < 1 || width < 1 || offset < 0) {
    throw InputError("an embedding table of " + std::to_string(rows) + " rows of " + std::to_string(width) +
                     " at byte " + std::to_string(offset) + " makes no sense");
  }
  // Compared by division, so that no product of unchecked sizes can overflow.
  const auto available = static_cast<int64_t>(file_.size());
  if (offset > available || rows > (available - offset) / element_size(type) / width) {
    throw BundleError(path + " holds " + std::to_string(available) + " bytes, too few for " +
                      std::to_string(rows) + " rows of " + std::to_string(width) + " values of " +
                      std::to_string(element_size(type)) + " bytes from byte " + std::to_string(offset) +
                      " on");
  }
  table_ = file_.data() + offset;
  if (type == ElementType::kUInt8) map_blocks(path, offset);
  // Rows are asked for one here, one there: reading ahead would fill memory with rows that nobody wants.
  madvise(file_.data(), file_.size(), MADV_RANDOM);
}

int64_t EmbeddingTable::block_width() { return kBlock; }

void EmbeddingTable::map_blocks(const std::string& path, int64_t offset) {
  const int64_t count = rows_ * blocks_of(width_);  // no larger than the table, whose size is checked
  const int64_t scales = next_page(offset + rows_ * width_);
  const int64_t zero_points = next_page(scales + count * static_cast<int64_t>(sizeof(float)));
  if (static_cast<int64_t>(file_.size()) < zero_points + count) {
    throw BundleError(path + " holds " + std::to_string(file_.size()) +
                      " bytes, too few for the scales and zero points of " + std::to_string(rows_) +
                      " rows of " + std::to_string(width_) + " codes in blocks of " + std::to_string(kBlock) +
                      ": they end at byte " + std::to_string(zero_points + count));
  }
  scales_ = file_.data() + scales;
  zero_points_ = file_.data() + zero_points;
}

// As ONNX's DequantizeLinear: (code - zero point) * scale, the difference exact, the product rounded once.
void EmbeddingTable::gather_blocks(int64_t row, float* output) const {
  const int64_t blocks = blocks_of(width_);
  const auto* codes = reinterpret_cast<const uint8_t*>(table_ + row * width_);
  const auto* zero_points = reinterpret_cast<const uint8_t*>(zero_points_ + row * blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    float scale;
    std::memcpy(&scale, scales_ + (row * blocks + block) * sizeof(scale), sizeof(scale));
    const int zero_point = zero_points[block];
    const int64_t end = std::min(width_, (block + 1) * kBlock);
    for (int64_t i = block * kBlock; i < end; ++i) {
      output[i] = static_cast<float>(codes[i] - zero_point) * scale;
    }
  }
}

void EmbeddingTable::gather(const int32_t* ids, int64_t count, float* output) const {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= rows_) {
      throw InputError("token id " + std::to_string(ids[i]) + " at position " + std::to_string(i) +
                       " is outside the vocabulary of " + std::to_string(rows_));
    }
  }
  const int64_t row_bytes = width_ * element_size(type_);
  const auto gather_rows = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < end; ++i) {
      const std::byte* row = table_ + ids[i] * row_bytes;
      float* out = output + i * width_;
      switch (type_) {
        case ElementType::kFloat32:
          std::memcpy(out, row, row_bytes);
          break;
        case ElementType::kBFloat16:
          widen_row<bfloat16_to_float>(row, width_, out);
          break;
        case ElementType::kFloat16:
          widen_row<float16_to_float>(row, width_, out);
          break;
        case ElementType::kUInt8:
          gather_blocks(ids[i], out);
          break;
      }
    }
  };
  // A slice worth a thread is some hundred microseconds: a quarter million values.
  parallel_for(count, std::max<int64_t>(1, (1 << 18) / width_), gather_rows);
}

}  // namespace qwen2vl
