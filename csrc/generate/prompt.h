#pragma once

#include <cstdint>
#include <vector>

#include "generate/request.h"
#include "rope/visual_blocks.h"

namespace qwen2vl {

// A request's prompt with its positions: all that prefill and the prefix rule need to know about it.
struct Prompt {
  // Throws InputError when the prompt is empty or its pads, grids and content ids disagree.
  Prompt(const Request& request, const VisualTokens& visual_tokens);

  int64_t tokens;
  std::vector<VisualBlock> blocks;
  std::vector<int64_t> positions;  // [3, tokens]
  int64_t rope_delta;
  std::vector<uint64_t> identities;  // [tokens], see position_identity
};

}  // namespace qwen2vl
