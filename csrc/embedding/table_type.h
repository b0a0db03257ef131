#pragma once

#include <cstdint>
#include <string>

namespace qwen2vl {

// How a token embedding table is stored: 16- or 32-bit floats, numbered as FloatType's, or 8-bit codes in
// blocks along a row, value = (code - zero_point[block]) * scale[block].
enum class TableType : int32_t { kFloat32, kBFloat16, kFloat16, kUInt8Blocks };

// Accepts "float32", "bfloat16", "float16" and "uint8"; throws InputError otherwise.
TableType table_type_from_name(const std::string& name);
int64_t element_size(TableType type);  // in bytes

}  // namespace qwen2vl
