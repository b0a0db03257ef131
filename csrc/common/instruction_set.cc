#include "common/instruction_set.h"

#include <atomic>
#include <cstdlib>

#include "common/error.h"

namespace qwen2vl {

namespace {

constexpr InstructionSet kSets[] = {InstructionSet::kPortable, InstructionSet::kAvx2, InstructionSet::kAvx512,
                                    InstructionSet::kAvx512Bfloat16};
constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512-bfloat16"};

bool has(InstructionSet set) {
#ifdef __x86_64__
  switch (set) {
    case InstructionSet::kPortable:
      return true;
    case InstructionSet::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case InstructionSet::kAvx512:
      return has(InstructionSet::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
    case InstructionSet::kAvx512Bfloat16:
      return has(InstructionSet::kAvx512) && __builtin_cpu_supports("avx512vnni") &&
             __builtin_cpu_supports("avx512bf16");
  }
#endif
  return set == InstructionSet::kPortable;
}

InstructionSet named(const std::string& name) {
  for (const InstructionSet set : kSets) {
    if (name == kNames[static_cast<int>(set)]) return set;
  }
  throw InputError("instruction set '" + name + "': take portable, avx2, avx512 or avx512-bfloat16");
}

InstructionSet of_environment() {
  const char* name = std::getenv("QWEN2VL_INSTRUCTION_SET");
  return name == nullptr || *name == 0 ? InstructionSet::kAvx512Bfloat16 : named(name);
}

std::atomic<InstructionSet>& limit() {
  static std::atomic<InstructionSet> value = of_environment();
  return value;
}

}  // namespace

bool may_use(InstructionSet set) { return set <= limit() && has(set); }

bool may_use_vnni() {
#ifdef __x86_64__
  return may_use(InstructionSet::kAvx512) && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

bool has_int8_tiles() {
#ifdef __x86_64__
  return __builtin_cpu_supports("amx-int8");
#else
  return false;
#endif
}

bool overflows_int8() {
#ifdef __x86_64__
  return !__builtin_cpu_supports("avx512vnni") && !__builtin_cpu_supports("avxvnni") && !has_int8_tiles();
#else
  return false;
#endif
}

void limit_instruction_set(const std::string& name) {
  limit() = name.empty() ? of_environment() : named(name);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const InstructionSet set : kSets) {
    if (may_use(set)) names.push_back(kNames[static_cast<int>(set)]);
  }
  return names;
}

}  // namespace qwen2vl
