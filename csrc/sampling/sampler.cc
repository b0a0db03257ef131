#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "sampling/philox.h"

namespace qwen2vl {

namespace {

constexpr Cutoff kKeepAll{-std::numeric_limits<float>::infinity(), std::numeric_limits<int32_t>::max()};

Peak usable_peak(const float* logits, int64_t vocab, uint64_t step, bool after_penalties,
                 float* block_maxima) {
  const Peak peak = find_peak(logits, vocab, block_maxima);
  if (peak.usable) return peak;
  const bool has_nan = std::any_of(logits, logits + vocab, [](float logit) { return std::isnan(logit); });
  const bool has_infinity =
      std::any_of(logits, logits + vocab, [](float logit) { return logit == INFINITY; });
  throw UnusableLogitsError(unusable_logits_message(step, after_penalties, has_nan, has_infinity));
}

}  // namespace

std::string unusable_logits_message(uint64_t step, bool after_penalties, bool has_nan, bool has_infinity) {
  return std::string(after_penalties ? "the penalties left" : "the engine returned") +
         (has_nan        ? " NaN"
          : has_infinity ? " infinite"
                         : " only -infinity as") +
         " logits at step " + std::to_string(step) +
         (!has_nan && !has_infinity ? ""
          : after_penalties         ? ": they are too large; bring repetition_penalty nearer to 1, "
                                      "presence_penalty and frequency_penalty nearer to 0"
                                    : ": its numbers overflowed; use a bundle of higher precision");
}

Sampler::Sampler(const SamplingOptions& options, int64_t vocab, const int32_t* prompt, int64_t tokens)
    : options_(options),
      vocab_(vocab),
      block_maxima_(logit_blocks(vocab)),
      model_maxima_(options.penalizes() ? logit_blocks(vocab) : 0),
      block_sums_(logit_blocks(vocab)) {
  options.validate();
  if (vocab < 1 || vocab > std::numeric_limits<int32_t>::max()) {
    throw InputError("the vocabulary cannot have " + std::to_string(vocab) + " tokens");
  }
  for (int64_t i = 0; i < tokens; ++i) {
    if (prompt[i] < 0 || prompt[i] >= vocab) {
      throw InputError("token id " + std::to_string(prompt[i]) + " at position " + std::to_string(i) +
                       " is outside the vocabulary of " + std::to_string(vocab));
    }
  }
  if (options.penalizes()) {
    penalties_.emplace(options, vocab, prompt, tokens);
    penalized_.resize(vocab);
  }
  if (!options.greedy()) filter_.emplace(vocab);
}

SampledToken Sampler::sample(const float* logits) {
  SampledToken token;
  float* const model_maxima = penalties_ ? model_maxima_.data() : block_maxima_.data();
  Peak peak = usable_peak(logits, vocab_, step_, false, model_maxima);
  const float model_peak = peak.best.logit;
  const float* chosen_from = logits;
  if (penalties_) {
    std::copy_n(logits, vocab_, penalized_.begin());
    penalties_->apply(penalized_.data());
    chosen_from = penalized_.data();
    peak = usable_peak(chosen_from, vocab_, step_, true, block_maxima_.data());
  }
  if (options_.greedy()) {
    token.id = peak.best.id;
  } else {
    const float best = peak.best.logit;
    const auto inverse_temperature = static_cast<float>(1.0 / options_.temperature);
    const Cutoff cutoff = filter_->cutoff(chosen_from, block_maxima_.data(), best, options_);
    const double total = softmax_sum(chosen_from, block_maxima_.data(), vocab_, best, inverse_temperature,
                                     cutoff, block_sums_.data());
    const double target = uniform_draw(options_.seed, step_) * total;
    token.id =
        softmax_find(chosen_from, vocab_, best, inverse_temperature, cutoff, block_sums_.data(), target);
  }
  if (options_.logprobs >= 0) report_logprobs(logits, model_maxima, model_peak, &token);
  if (penalties_) penalties_->count(token.id);
  ++step_;
  return token;
}

void Sampler::report_logprobs(const float* logits, const float* block_maxima, float peak,
                              SampledToken* token) {
  const double log_sum =
      std::log(softmax_sum(logits, block_maxima, vocab_, peak, 1.0f, kKeepAll, block_sums_.data()));
  const auto logprob = [&](float logit) { return static_cast<float>(logit - double{peak} - log_sum); };
  token->logprob = logprob(logits[token->id]);
  select_best(logits, block_maxima, vocab_, options_.logprobs, &scratch_);
  for (const TokenLogit& candidate : scratch_)
    token->alternatives.push_back({candidate.id, logprob(candidate.logit)});
}

}  // namespace qwen2vl
