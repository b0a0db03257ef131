#pragma once

namespace qwen2vl {

enum class Factors { kFloat32, kUint8Int8 };

// Multiplications and additions a second of this CPU's own instruction for products of `factors`, all
// operands in registers: no kernel is faster that multiplies with it. `threads` threads run for a third of a
// second, pinned to nothing; the fastest part of it counts. AVX-512 (VNNI for integers) or AVX2, within
// limit_instruction_set; 0 where there is neither.
double multiply_rate(Factors factors, int threads);

}  // namespace qwen2vl
