#include "integer/quantize.h"

#include "common/instruction_set.h"

namespace qwen2vl {

const QuantizeKernels& quantize_kernels() {
  if (may_use(InstructionSet::kAvx512)) return *avx512_quantize_kernels();
  if (may_use(InstructionSet::kAvx2)) return *avx2_quantize_kernels();
  return *portable_quantize_kernels();
}

}  // namespace qwen2vl
