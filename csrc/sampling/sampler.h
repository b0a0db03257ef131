#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/error.h"
#include "sampling/logits.h"
#include "sampling/penalties.h"
#include "sampling/sampling_options.h"
#include "sampling/token_filter.h"

namespace qwen2vl {

// The logits hold NaN or +infinity, or nothing but -infinity: there is no next token. Reaches Python as
// Qwen2VLError.
class UnusableLogitsError : public Error {
 public:
  using Error::Error;
};

// What such an error says: at which token of the answer, and what is wrong with the logits.
std::string unusable_logits_message(uint64_t step, bool after_penalties, bool has_nan, bool has_infinity);

struct TokenLogprob {
  int32_t id;
  float logprob;
};

// A chosen token. The log-probabilities are those of the model itself: log-softmax of the logits before
// penalties, temperature and filters. They are filled only when the options ask for them.
struct SampledToken {
  int32_t id = 0;
  float logprob = 0;
  std::vector<TokenLogprob> alternatives;  // the most likely tokens, best first
};

// Chooses the tokens of one answer, one after another. Its draws depend on the seed and on how many tokens it
// has chosen, on nothing else. Memory is allocated at construction only, apart from the alternatives.
class Sampler {
 public:
  // prompt [tokens] counts for the repetition penalty. Throws InputError for bad options or ids beyond vocab.
  Sampler(const SamplingOptions& options, int64_t vocab, const int32_t* prompt, int64_t tokens);

  // The next token for logits [vocab]. Throws UnusableLogitsError.
  SampledToken sample(const float* logits);

  int64_t vocab() const { return vocab_; }
  const SamplingOptions& options() const { return options_; }

 private:
  void report_logprobs(const float* logits, const float* block_maxima, float peak, SampledToken* token);

  SamplingOptions options_;
  int64_t vocab_;
  uint64_t step_ = 0;
  std::optional<Penalties> penalties_;
  std::optional<TokenFilter> filter_;
  std::vector<float> penalized_;     // [vocab] when penalties are on
  std::vector<float> block_maxima_;  // of the logits chosen from
  std::vector<float> model_maxima_;  // of the model's own logits, where penalties make others of them
  std::vector<double> block_sums_;   // of the softmax
  std::vector<TokenLogit> scratch_;  // alternatives
};

}  // namespace qwen2vl
