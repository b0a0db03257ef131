#include "generate/executor.h"

#include <algorithm>

namespace qwen2vl {

DecoderStep::DecoderStep(const Sizes& sizes)
    : sizes(sizes),
      inputs_embeds_(std::max(sizes.max_rows, sizes.max_tokens) * sizes.hidden),
      cos_(std::max(sizes.max_rows, sizes.max_tokens) * sizes.rope_width),
      sin_(std::max(sizes.max_rows, sizes.max_tokens) * sizes.rope_width),
      past_length_(sizes.max_rows),
      logit_rows_(sizes.max_rows),
      logits_(sizes.max_rows * sizes.vocab) {}

}  // namespace qwen2vl
