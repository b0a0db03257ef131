#include "generate/executor.h"

#include <algorithm>

namespace qwen2vl {

namespace {

int64_t most_tokens(const DecoderStep::Sizes& sizes) {
  return std::max({sizes.max_rows, sizes.max_tokens, sizes.max_scored});
}

int64_t most_scored(const DecoderStep::Sizes& sizes) { return std::max(sizes.max_rows, sizes.max_scored); }

}  // namespace

DecoderStep::DecoderStep(const Sizes& sizes)
    : sizes(sizes),
      inputs_embeds_(most_tokens(sizes) * sizes.hidden),
      cos_(most_tokens(sizes) * sizes.rope_width),
      sin_(most_tokens(sizes) * sizes.rope_width),
      past_length_(sizes.max_rows),
      logit_rows_(most_scored(sizes)),
      logits_(most_scored(sizes) * sizes.vocab) {}

}  // namespace qwen2vl
