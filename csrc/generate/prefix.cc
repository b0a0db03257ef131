#include "generate/prefix.h"

#include <algorithm>

namespace qwen2vl {

namespace {

// The finaliser of SplitMix64: every bit of the input reaches every bit of the output.
uint64_t scramble(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}

}  // namespace

uint64_t position_identity(uint64_t content_id, int32_t token_id, int64_t temporal, int64_t height,
                           int64_t width) {
  uint64_t identity = 0;
  for (const uint64_t part : {content_id, static_cast<uint64_t>(token_id), static_cast<uint64_t>(temporal),
                              static_cast<uint64_t>(height), static_cast<uint64_t>(width)}) {
    identity = scramble(identity + 0x9E3779B97F4A7C15u + part);
  }
  return identity;
}

int64_t reusable_prefix(const std::vector<uint64_t>& held, const std::vector<uint64_t>& prompt,
                        const std::vector<VisualBlock>& blocks, int64_t least_left) {
  const auto difference = std::mismatch(held.begin(), held.end(), prompt.begin(), prompt.end());
  int64_t length = difference.second - prompt.begin();
  length = std::clamp<int64_t>(static_cast<int64_t>(prompt.size()) - least_left, 0, length);
  for (const VisualBlock& block : blocks) {
    if (block.begin < length && length < block.begin + block.length) return block.begin;
  }
  return length;
}

}  // namespace qwen2vl
