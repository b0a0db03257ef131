#pragma once

#include <cstdint>
#include <vector>

#include "rope/visual_blocks.h"

namespace qwen2vl {

// What the keys and values at a position depend on, in 64 bits: what stands there (its content id), its token
// id, and its M-RoPE position on all three axes. Keys and values at a position are the same exactly when
// everything up to it is, so comparing identities from the first position on tells how much of a cache row a
// prompt can use.
uint64_t position_identity(uint64_t content_id, int32_t token_id, int64_t temporal, int64_t height,
                           int64_t width);

// How many leading positions of a prompt the cache row already holds: the longest common prefix of `held` and
// `prompt`, cut so that
//  - at least `least_left` tokens, or all, are left to compute: one, since the answer begins with its logits,
//    or more, where the decoder computes a few tokens in another way;
//  - no visual block is split: it is reused whole or not at all.
int64_t reusable_prefix(const std::vector<uint64_t>& held, const std::vector<uint64_t>& prompt,
                        const std::vector<VisualBlock>& blocks, int64_t least_left);

}  // namespace qwen2vl
