#pragma once

#include <cstdint>
#include <string>

#include "common/error.h"
#include "common/float_type.h"

// What a device's bindings take from Python: number formats by name, and addresses as integers.
namespace qwen2vl {

inline FloatType float_type(const std::string& name) {
  if (name == "float32") return FloatType::kFloat32;
  if (name == "bfloat16") return FloatType::kBFloat16;
  if (name == "float16") return FloatType::kFloat16;
  throw InputError("a device computes in float32, bfloat16 or float16, not in " + name);
}

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline uintptr_t address(const void* data) { return reinterpret_cast<uintptr_t>(data); }

}  // namespace qwen2vl
