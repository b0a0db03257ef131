#pragma once

#include <string>
#include <vector>

namespace qwen2vl {

// The instruction sets that kernels are compiled for, each including those before it; the last one has
// integer dot products (VNNI), too. Which ones run is decided when the program does, so that one build serves
// every CPU.
enum class InstructionSet { kPortable, kAvx2, kAvx512, kAvx512Bfloat16 };

// Whether kernels may use a set: this CPU has it, and limit_instruction_set does not forbid it.
bool may_use(InstructionSet set);
// AVX-512 with integer dot products (VNNI), within the same limit as kAvx512.
bool may_use_vnni();
// Whether the CPU multiplies int8 tiles (AMX), as the engine's own products do where they can.
bool has_int8_tiles();

// Whether the engine's products of uint8 and int8 would overflow on this CPU, an x86 one without VNNI, and it
// takes slower ones instead.
bool overflows_int8();

// The largest set that may be used from now on, by name: "portable", "avx2", "avx512", "avx512-bfloat16"
// (with VNNI). "", as at the start, is what the environment variable QWEN2VL_INSTRUCTION_SET names, all there
// are without it. Kernels that were chosen before stay. For checks and comparisons.
void limit_instruction_set(const std::string& name);
// The sets that may be used, by name.
std::vector<std::string> instruction_sets();

}  // namespace qwen2vl
