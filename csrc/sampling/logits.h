#pragma once

#include <cstdint>
#include <vector>

#include "common/host_device.h"

// Scans over one row of logits [vocab] (float32). The plain loops are written for the compiler to vectorise.
// Most of the work of choosing among 150,000 tokens is to read their logits. The first scan notes the largest
// of every block, and the later ones read only the blocks that matter to them.
namespace qwen2vl {

constexpr int64_t kLogitBlock = 256;
// Loops go through a block in so many lanes side by side; a sum adds up the lanes' own in the end.
constexpr int64_t kLogitLanes = 16;
static_assert(kLogitBlock % kLogitLanes == 0);
QWEN2VL_HOST_DEVICE int64_t logit_blocks(int64_t vocab) { return (vocab + kLogitBlock - 1) / kLogitBlock; }

struct TokenLogit {
  float logit;
  int32_t id;
};

// The order in which tokens are preferred: larger logit first, of equals the smaller id.
QWEN2VL_HOST_DEVICE bool precedes(const TokenLogit& a, const TokenLogit& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

struct Peak {
  TokenLogit best;
  // No NaN and no +infinity among the logits, and the best is not -infinity: softmax is defined.
  bool usable;
};

// Writes the largest logit of every block, NaN ignored, to block_maxima [logit_blocks(vocab)].
Peak find_peak(const float* logits, int64_t vocab, float* block_maxima);

// The `count` first tokens in order of preference, sorted; fewer when vocab is smaller. `selected` is reused.
void select_best(const float* logits, const float* block_maxima, int64_t vocab, int64_t count,
                 std::vector<TokenLogit>* selected);

}  // namespace qwen2vl
