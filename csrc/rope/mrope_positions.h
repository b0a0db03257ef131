#pragma once

#include <cstdint>
#include <vector>

#include "rope/visual_blocks.h"

namespace qwen2vl {

// M-RoPE positions by the paper's rule (Qwen2-VL, section 2.1; transformers 4.57 get_rope_index):
//  - text counts up by one on all three axes;
//  - the token at (t, h, w) of a visual block has the block's start plus (t, h, w);
//  - what follows a block starts at the largest position used so far on any axis, plus one.
// blocks as find_visual_blocks returns them; writes positions [3, tokens] (temporal, height, width).
// Returns the rope delta: token number n of the answer, n counted from the prompt's first token, has position
// n + delta on every axis. It is zero or negative, or positive after a video longer than it is large.
int64_t mrope_positions(const std::vector<VisualBlock>& blocks, int64_t tokens, int64_t* positions);

}  // namespace qwen2vl
