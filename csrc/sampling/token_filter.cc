#include "sampling/token_filter.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace qwen2vl {

namespace {

constexpr int32_t kAllIds = std::numeric_limits<int32_t>::max();
constexpr size_t kSmall = 64;  // below this many candidates, sorting is the simplest selection

// The stricter of two cutoffs.
Cutoff stricter(Cutoff a, Cutoff b) {
  if (a.logit != b.logit) return a.logit > b.logit ? a : b;
  return a.last_id < b.last_id ? a : b;
}

}  // namespace

TokenFilter::TokenFilter(int64_t vocab)
    : vocab_(vocab), block_sums_((vocab + kSoftmaxBlock - 1) / kSoftmaxBlock) {}

Cutoff TokenFilter::cutoff(const float* logits, float peak, const SamplingOptions& options) {
  const auto inverse_temperature = static_cast<float>(1.0 / options.temperature);
  Cutoff result{-std::numeric_limits<float>::infinity(), kAllIds};
  if (options.top_k > 0 && options.top_k < vocab_) {
    select_best(logits, vocab_, options.top_k, &candidates_);
    result = {candidates_.back().logit, kAllIds};
  }
  if (options.top_p < 1) result = top_p_cutoff(logits, peak, inverse_temperature, options.top_p, result);
  if (options.min_p > 0) {
    // p >= min_p * p_best, as a bound on the logit.
    const auto floor = static_cast<float>(peak + options.temperature * std::log(options.min_p));
    result = stricter(result, {floor, kAllIds});
  }
  return result;
}

// Tokens in order of preference, until the probabilities of those before reach top_p.
Cutoff TokenFilter::top_p_cutoff(const float* logits, float peak, float inverse_temperature, double top_p,
                                 Cutoff above) {
  const double needed =
      top_p * softmax_sum(logits, vocab_, peak, inverse_temperature, above, block_sums_.data());
  const auto weight = [&](const TokenLogit& token) {
    return static_cast<double>(exp_nonpositive((token.logit - peak) * inverse_temperature));
  };
  // Gather candidates. Mostly those within e^-8 of the best already hold the mass; else all have to come.
  double gathered = 0;
  for (const double depth : {8.0, std::numeric_limits<double>::infinity()}) {
    const auto floor = std::max(static_cast<float>(peak - depth / inverse_temperature), above.logit);
    candidates_.clear();
    gathered = 0;
    for (int64_t id = 0; id < vocab_; ++id) {
      if (!(logits[id] >= floor)) continue;
      candidates_.push_back({logits[id], static_cast<int32_t>(id)});
      gathered += weight(candidates_.back());
    }
    if (gathered > needed) break;
  }
  // Halve the range that holds the cut, best tokens first, until it is small.
  auto begin = candidates_.begin(), end = candidates_.end();
  double before = 0;  // mass of the candidates in front of begin
  while (static_cast<size_t>(end - begin) > kSmall) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, precedes);
    double half = 0;
    for (auto token = begin; token != middle; ++token) half += weight(*token);
    if (before + half >= needed) {
      end = middle;
    } else {
      before += half;
      begin = middle;
    }
  }
  std::sort(begin, end, precedes);
  for (auto token = begin; token != end; ++token) {
    before += weight(*token);
    if (before >= needed || token + 1 == end) return {token->logit, token->id};
  }
  return above;
}

}  // namespace qwen2vl
