#include "embedding/table_type.h"

#include "common/error.h"

namespace qwen2vl {

TableType table_type_from_name(const std::string& name) {
  if (name == "float32") return TableType::kFloat32;
  if (name == "bfloat16") return TableType::kBFloat16;
  if (name == "float16") return TableType::kFloat16;
  if (name == "uint8") return TableType::kUInt8Blocks;
  throw InputError("unknown element type '" + name + "', expected float32, bfloat16, float16 or uint8");
}

int64_t element_size(TableType type) {
  switch (type) {
    case TableType::kFloat32:
      return 4;
    case TableType::kUInt8Blocks:
      return 1;
    default:
      return 2;
  }
}

}  // namespace qwen2vl
