#include "sampling/token_filter.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/avx2_clone.h"

namespace qwen2vl {

namespace {

constexpr int32_t kAllIds = std::numeric_limits<int32_t>::max();
constexpr size_t kSmall = 64;   // below this many candidates, sorting is the simplest selection
constexpr size_t kMany = 4096;  // above this many, finding their slice first is faster than halving

// Slices of a row by depth, how far a logit lies below the best in units of the exponent. Equal logits share
// a slice, and a better one's comes no later.
constexpr float kSlicesAUnit = 16, kDeepest = 88;  // no weight is left at that depth
constexpr int64_t kSlices = static_cast<int64_t>(kSlicesAUnit * kDeepest) + 1;

QWEN2VL_AVX2_CLONE void slice_block(const float* logits, int64_t count, float peak, float inverse_temperature,
                                    int32_t* slices) {
  for (int64_t i = 0; i < count; ++i) {
    const float depth = (peak - logits[i]) * inverse_temperature;
    slices[i] = static_cast<int32_t>((depth < kDeepest ? depth : kDeepest) * kSlicesAUnit);
  }
}

QWEN2VL_AVX2_CLONE void weigh_block(const float* logits, int64_t count, float peak, float inverse_temperature,
                                    float floor, float* weights) {
  for (int64_t i = 0; i < count; ++i) {
    const float weight = exp_nonpositive((logits[i] - peak) * inverse_temperature);
    weights[i] = logits[i] >= floor ? weight : 0.0f;
  }
}

// The stricter of two cutoffs.
Cutoff stricter(Cutoff a, Cutoff b) {
  if (a.logit != b.logit) return a.logit > b.logit ? a : b;
  return a.last_id < b.last_id ? a : b;
}

}  // namespace

TokenFilter::TokenFilter(int64_t vocab)
    : vocab_(vocab), block_sums_(logit_blocks(vocab)), slice_sums_(kSlices) {}

Cutoff TokenFilter::cutoff(const float* logits, const float* block_maxima, float peak,
                           const SamplingOptions& options) {
  Cutoff result{-std::numeric_limits<float>::infinity(), kAllIds};
  if (options.top_k > 0 && options.top_k < vocab_) {
    select_best(logits, block_maxima, vocab_, options.top_k, &candidates_);
    result = {candidates_.back().logit, kAllIds};
  }
  if (options.top_p < 1) {
    const auto inverse_temperature = static_cast<float>(1.0 / options.temperature);
    result = top_p_cutoff({logits, block_maxima, peak, inverse_temperature, result}, options.top_p);
  }
  if (options.min_p > 0) {
    // p >= min_p * p_best, as a bound on the logit.
    const auto floor = static_cast<float>(peak + options.temperature * std::log(options.min_p));
    result = stricter(result, {floor, kAllIds});
  }
  return result;
}

bool TokenFilter::gather(const Row& row, float floor, size_t most) {
  candidates_.clear();
  floor = std::max(floor, row.above.logit);
  for (int64_t begin = 0; begin < vocab_; begin += kLogitBlock) {
    if (!(row.block_maxima[begin / kLogitBlock] >= floor)) continue;
    const int64_t end = std::min(begin + kLogitBlock, vocab_);
    for (int64_t id = begin; id < end; ++id) {
      if (row.logits[id] >= floor) candidates_.push_back({row.logits[id], static_cast<int32_t>(id)});
    }
    if (candidates_.size() > most) return false;
  }
  return true;
}

double TokenFilter::gather_crossing(const Row& row, double needed) {
  float weights[kLogitBlock];
  int32_t slices[kLogitBlock];
  std::fill(slice_sums_.begin(), slice_sums_.end(), 0.0);
  for (int64_t begin = 0; begin < vocab_; begin += kLogitBlock) {
    if (!(row.block_maxima[begin / kLogitBlock] >= row.above.logit)) continue;
    const int64_t count = std::min(kLogitBlock, vocab_ - begin);
    slice_block(row.logits + begin, count, row.peak, row.inverse_temperature, slices);
    weigh_block(row.logits + begin, count, row.peak, row.inverse_temperature, row.above.logit, weights);
    for (int64_t i = 0; i < count; ++i) slice_sums_[slices[i]] += weights[i];
  }
  // Rounding may leave all slices together short of `needed`: then it is the last with any weight.
  double sum = 0, before = 0;
  int32_t crossing = 0;
  for (int32_t slice = 0; slice < kSlices && sum < needed; ++slice) {
    if (slice_sums_[slice] == 0) continue;
    before = sum;
    sum += slice_sums_[slice];
    crossing = slice;
  }
  candidates_.clear();
  for (int64_t begin = 0; begin < vocab_; begin += kLogitBlock) {
    const int64_t count = std::min(kLogitBlock, vocab_ - begin);
    slice_block(&row.block_maxima[begin / kLogitBlock], 1, row.peak, row.inverse_temperature, slices);
    if (slices[0] > crossing) continue;
    slice_block(row.logits + begin, count, row.peak, row.inverse_temperature, slices);
    for (int64_t i = 0; i < count; ++i) {
      const TokenLogit token{row.logits[begin + i], static_cast<int32_t>(begin + i)};
      if (slices[i] == crossing && token.logit >= row.above.logit) candidates_.push_back(token);
    }
  }
  return before;
}

// Tokens in order of preference, until the probabilities of those before reach top_p.
Cutoff TokenFilter::top_p_cutoff(const Row& row, double top_p) {
  const double needed = top_p * softmax_sum(row.logits, row.block_maxima, vocab_, row.peak,
                                            row.inverse_temperature, row.above, block_sums_.data());
  const auto weight = [&](const TokenLogit& token) {
    return static_cast<double>(exp_nonpositive((token.logit - row.peak) * row.inverse_temperature));
  };
  const auto sum_of = [&](auto begin, auto end) {
    double sum = 0;
    for (auto token = begin; token != end; ++token) sum += weight(*token);
    return sum;
  };
  // Mostly the tokens within e^-8 of the best are few and hold the mass.
  const auto floor = static_cast<float>(row.peak - 8.0 / row.inverse_temperature);
  double before = 0;  // mass of the tokens in front of begin
  if (!gather(row, floor, kMany) || sum_of(candidates_.begin(), candidates_.end()) <= needed) {
    before = gather_crossing(row, needed);
  }
  // Halve the range that holds the cut, best tokens first, until it is small.
  auto begin = candidates_.begin(), end = candidates_.end();
  while (static_cast<size_t>(end - begin) > kSmall) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, precedes);
    const double half = sum_of(begin, middle);
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
  return row.above;
}

}  // namespace qwen2vl
