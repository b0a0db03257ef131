#pragma once

#include <cstdint>
#include <vector>

namespace qwen2vl {

// The special token ids that stand for one merged patch each, and how many patches merge on a side.
struct VisualTokens {
  int32_t image_pad;
  int32_t video_pad;
  int32_t merge_size;

  bool is_pad(int32_t id) const { return id == image_pad || id == video_pad; }
};

// A picture or video inside a prompt: `length` = t * h * w consecutive pad tokens from `begin` on.
// t is in temporal patches; h and w are in merged patches, that is in tokens.
struct VisualBlock {
  int64_t begin, length;
  int64_t t, h, w;
};

// Finds the blocks of a prompt, in order of appearance.
//   token_ids [tokens], pads expanded; grids [visuals, 3]: t, h, w in patches, in order of appearance.
// Throws InputError when pads and grids disagree in number or kind of run, or when a grid does not merge
// evenly.
std::vector<VisualBlock> find_visual_blocks(const int32_t* token_ids, int64_t tokens, const int64_t* grids,
                                            int64_t visuals, const VisualTokens& visual_tokens);

}  // namespace qwen2vl
