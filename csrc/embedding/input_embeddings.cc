#include "embedding/input_embeddings.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "common/error.h"

namespace qwen2vl {

void fill_input_embeddings(const EmbeddingTable& table, const int32_t* token_ids,
                           const std::vector<VisualBlock>& blocks,
                           const std::vector<VisualEmbeddings>& visuals, int64_t begin, int64_t end,
                           float* output) {
  const int64_t width = table.width();
  int64_t token = begin;
  const auto gather_text = [&](int64_t text_end) {
    if (text_end <= token) return;
    table.gather(token_ids + token, text_end - token, output + (token - begin) * width);
    token = text_end;
  };
  for (size_t i = 0; i < blocks.size(); ++i) {
    const int64_t block_begin = std::max(begin, blocks[i].begin);
    const int64_t block_end = std::min(end, blocks[i].begin + blocks[i].length);
    if (block_begin >= block_end) continue;
    if (visuals[i].data == nullptr) {
      throw InputError("visual " + std::to_string(i) + " has no embeddings, and the cache does not hold it");
    }
    if (visuals[i].on_device) {
      throw InputError("the embeddings of visual " + std::to_string(i) +
                       " lie in a device's memory, and this decoder computes on the CPU");
    }
    gather_text(block_begin);
    std::memcpy(output + (token - begin) * width, visuals[i].data + (block_begin - blocks[i].begin) * width,
                (block_end - block_begin) * width * sizeof(float));
    token = block_end;
  }
  gather_text(end);
}

}  // namespace qwen2vl
