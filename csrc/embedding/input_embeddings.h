#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "embedding/embedding_table.h"
#include "rope/visual_blocks.h"

namespace qwen2vl {

// The vision tower's output for one picture or video: [rows, width] float32, one row a pad token.
// data is null when the visual lies in the part of the prompt that the cache already holds.
struct VisualEmbeddings {
  const float* data = nullptr;
  int64_t rows = 0, width = 0;
  bool on_device = false;             // data is an address of the decoder's device
  std::shared_ptr<const void> owner;  // keeps data alive
};

// The decoder's input for the prompt's tokens [begin, end): the table's rows for text, the visual embeddings
// at pads. `blocks` and `visuals` are parallel, in order of appearance. Writes output [end - begin,
// table.width()]. Every block that overlaps [begin, end) needs its embeddings (InputError).
void fill_input_embeddings(const EmbeddingTable& table, const int32_t* token_ids,
                           const std::vector<VisualBlock>& blocks,
                           const std::vector<VisualEmbeddings>& visuals, int64_t begin, int64_t end,
                           float* output);

}  // namespace qwen2vl
