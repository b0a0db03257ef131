#include "attention/decode_attention.h"

#include <cstdint>

namespace qwen2vl {

int64_t decode_attention_scratch(int64_t rows, int64_t heads, int64_t head_dim) {
  return rows * AttentionScratch::of(heads, head_dim).all * static_cast<int64_t>(sizeof(float));
}

bool decode_attention_fits(int64_t head_dim) { return head_dim == 32 || head_dim == 64 || head_dim == 128; }

}  // namespace qwen2vl
