#pragma once

#include <cstdint>

namespace qwen2vl {

// cos/sin for the vision tower's 2-D rotary embedding of one temporal patch of grid_h x grid_w patches.
// Rows come in merge order, as the patches do: merge_size x merge_size neighbours side by side.
// Of the head_dim / 2 columns, the first half turns with the patch's row, the second with its column.
// Writes cos, sin [grid_h * grid_w, head_dim / 2]. Throws InputError unless head_dim is a multiple of 4 and
// both grid sizes are positive multiples of merge_size. (transformers: VisionRotaryEmbedding, rot_pos_emb.)
void vision_rope_table(int64_t grid_h, int64_t grid_w, int64_t head_dim, int64_t merge_size, double theta,
                       float* cos, float* sin);

// The checks alone, for a caller that has to size the output first.
void check_vision_grid(int64_t grid_h, int64_t grid_w, int64_t head_dim, int64_t merge_size);

}  // namespace qwen2vl
