#include "attention/kernels.h"

#include "common/instruction_set.h"

namespace qwen2vl {

const AttentionKernels& attention_kernels(AttentionNumbers numbers) {
  if (numbers != AttentionNumbers::kFloat32 && may_use(InstructionSet::kAvx512Bfloat16)) {
    return numbers == AttentionNumbers::kCodes ? *avx512_codes_attention_kernels()
                                               : *avx512_bfloat16_attention_kernels();
  }
  if (may_use(InstructionSet::kAvx512)) return *avx512_attention_kernels();
  if (may_use(InstructionSet::kAvx2)) return *avx2_attention_kernels();
  return *portable_attention_kernels();
}

}  // namespace qwen2vl
