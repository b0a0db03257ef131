#pragma once

#include <cstdint>

namespace qwen2vl {

// How the next token is chosen. Rules and order are transformers': penalties, temperature, top_k, top_p,
// min_p.
struct SamplingOptions {
  // Logits are divided by it. 0 takes the most likely token (greedy); below 1e-5 counts as 0.
  double temperature = 0.0;
  // Keep the k most likely tokens, and all that tie with the last of them. 0 keeps all.
  int64_t top_k = 0;
  // Keep the most likely tokens until their probabilities sum to at least top_p, in [0, 1]. 1 keeps all.
  double top_p = 1.0;
  // Keep tokens at least min_p times as likely as the most likely one, in [0, 1]. 0 keeps all.
  double min_p = 0.0;
  // Over 1 makes every token of the prompt or the answer less likely: negative logits are multiplied by it,
  // positive ones divided. 1 changes nothing.
  double repetition_penalty = 1.0;
  // Subtracted once from the logits of tokens that the answer already has (OpenAI's rule).
  double presence_penalty = 0.0;
  // Subtracted once for each time that the answer already has the token (OpenAI's rule).
  double frequency_penalty = 0.0;
  // Same seed, same prompt, same options: same answer, whatever else is in the batch.
  uint64_t seed = 0;
  // n >= 0 reports each chosen token's log-probability and the n most likely tokens'. -1 reports nothing.
  int64_t logprobs = -1;

  bool greedy() const { return temperature < 1e-5; }
  bool penalizes() const {
    return repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0;
  }
  // Throws InputError with the offending value.
  void validate() const;
};

}  // namespace qwen2vl
