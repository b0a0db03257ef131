#include "sampling/penalties.h"

namespace qwen2vl {

Penalties::Penalties(const SamplingOptions& options, int64_t vocab, const int32_t* prompt, int64_t tokens)
    : options_(options), answer_counts_(vocab, -1) {
  for (int64_t i = 0; i < tokens; ++i) see(prompt[i]);
}

void Penalties::see(int32_t id) {
  if (answer_counts_[id] >= 0) return;
  answer_counts_[id] = 0;
  seen_.push_back(id);
}

void Penalties::count(int32_t id) {
  see(id);
  ++answer_counts_[id];
}

void Penalties::apply(float* logits) const {
  const auto repetition = static_cast<float>(options_.repetition_penalty);
  for (const int32_t id : seen_) {
    logits[id] = penalized_logit(logits[id], answer_counts_[id], repetition, options_.presence_penalty,
                                 options_.frequency_penalty);
  }
}

}  // namespace qwen2vl
