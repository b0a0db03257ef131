#include "generate/prompt.h"

#include <string>

#include "common/error.h"
#include "generate/prefix.h"
#include "rope/mrope_positions.h"

namespace qwen2vl {

Prompt::Prompt(const Request& request, const VisualTokens& visual_tokens)
    : tokens(static_cast<int64_t>(request.token_ids.size())),
      blocks(find_visual_blocks(request.token_ids.data(), tokens, request.grids.data(),
                                static_cast<int64_t>(request.grids.size()) / 3, visual_tokens)),
      positions(3 * tokens) {
  if (tokens == 0) throw InputError("the prompt is empty: it needs at least one token");
  const bool has_ids = !request.content_ids.empty();
  if (has_ids ? request.content_ids.size() != request.token_ids.size() : !blocks.empty()) {
    throw InputError("a prompt of " + std::to_string(tokens) + " tokens with " +
                     std::to_string(blocks.size()) +
                     " pictures or videos needs a content id for every token, got " +
                     std::to_string(request.content_ids.size()));
  }
  rope_delta = mrope_positions(blocks, tokens, positions.data());
  identities.resize(tokens);
  for (int64_t i = 0; i < tokens; ++i) {
    const int32_t id = request.token_ids[i];
    const uint64_t content = has_ids ? request.content_ids[i] : static_cast<uint64_t>(id);
    identities[i] =
        position_identity(content, id, positions[i], positions[tokens + i], positions[2 * tokens + i]);
  }
}

}  // namespace qwen2vl
