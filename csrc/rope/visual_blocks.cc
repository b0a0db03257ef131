#include "rope/visual_blocks.h"

#include <string>

#include "common/error.h"

namespace qwen2vl {

namespace {

std::string describe(int64_t index, const int64_t* grid) {
  return "visual " + std::to_string(index) + " with grid (" + std::to_string(grid[0]) + ", " +
         std::to_string(grid[1]) + ", " + std::to_string(grid[2]) + ")";
}

// The block of grid `index` when it begins at `begin` and at most `available` tokens are left.
VisualBlock make_block(int64_t begin, int64_t available, int64_t index, const int64_t* grid,
                       int64_t merge_size) {
  if (grid[0] < 1 || grid[1] < merge_size || grid[2] < merge_size || grid[1] % merge_size != 0 ||
      grid[2] % merge_size != 0) {
    throw InputError(describe(index, grid) + ": t must be at least 1, h and w positive multiples of " +
                     std::to_string(merge_size));
  }
  VisualBlock block{begin, 0, grid[0], grid[1] / merge_size, grid[2] / merge_size};
  // Compared by division, so that no product of unchecked sizes can overflow.
  if (block.h > available || block.w > available / block.h || block.t > available / (block.h * block.w)) {
    throw InputError(describe(index, grid) + " needs more pad tokens than the " + std::to_string(available) +
                     " tokens left from position " + std::to_string(begin));
  }
  block.length = block.t * block.h * block.w;
  return block;
}

}  // namespace

std::vector<VisualBlock> find_visual_blocks(const int32_t* token_ids, int64_t tokens, const int64_t* grids,
                                            int64_t visuals, const VisualTokens& visual_tokens) {
  if (visual_tokens.merge_size < 1) {
    throw InputError("merge_size must be at least 1, got " + std::to_string(visual_tokens.merge_size));
  }
  std::vector<VisualBlock> blocks;
  for (int64_t i = 0; i < tokens;) {
    if (!visual_tokens.is_pad(token_ids[i])) {
      ++i;
      continue;
    }
    const auto index = static_cast<int64_t>(blocks.size());
    if (index == visuals) {
      throw InputError("pad token at position " + std::to_string(i) +
                       " belongs to no picture or video: " + std::to_string(visuals) + " grids were given");
    }
    const VisualBlock block = make_block(i, tokens - i, index, grids + 3 * index, visual_tokens.merge_size);
    for (int64_t j = 1; j < block.length; ++j) {
      if (token_ids[i + j] != token_ids[i]) {
        throw InputError(describe(index, grids + 3 * index) + " needs " + std::to_string(block.length) +
                         " pad tokens, found " + std::to_string(j) + " at position " + std::to_string(i));
      }
    }
    blocks.push_back(block);
    i += block.length;
  }
  if (static_cast<int64_t>(blocks.size()) != visuals) {
    throw InputError(std::to_string(visuals) + " grids were given, but the prompt has pad tokens for " +
                     std::to_string(blocks.size()));
  }
  return blocks;
}

}  // namespace qwen2vl
