#pragma once

#include <cstdint>

#include "sampling/logits.h"
#include "sampling/sampling_options.h"

struct CUstream_st;

namespace qwen2vl {

struct SampledToken;

// The sampler as a GPU runs it: the rules, random numbers and roundings of Sampler, so that both choose the
// same tokens. What Sampler finds by sorting candidates is found here by radix selection over the bits of the
// logits, by a team of threads (sampling/sample_team.h).

constexpr int32_t kMostAlternatives = 128;  // log-probabilities reported a token
constexpr int32_t kPeakParts = 32;          // pieces of the vocabulary that look for their best token alone

// One answer's options and progress, as plain numbers in the memory of whoever samples.
struct SamplerState {
  uint64_t seed;
  uint64_t step;  // tokens chosen so far
  float inverse_temperature;
  int32_t greedy;
  int32_t penalizes;
  int32_t logprobs;  // SamplingOptions::logprobs, at most kMostAlternatives
  int64_t top_k;
  double top_p;
  double min_p_depth;  // temperature * log(min_p), -infinity when off
  double presence_penalty, frequency_penalty;
  float repetition_penalty;
};
// Throws InputError for invalid options, and for more log-probabilities than kMostAlternatives.
SamplerState sampler_state(const SamplingOptions& options);

// What is unusable about a row of logits: bits of SampledRow::status.
constexpr int32_t kHasNan = 1, kHasInfinity = 2, kNothingFinite = 4, kAfterPenalties = 8;

// A chosen token, as it comes back to the host.
struct SampledRow {
  int32_t id;
  int32_t status;  // 0, or why there is no token
  float logprob;
  int32_t alternatives;  // entries of the arrays below in use
  int32_t alternative_ids[kMostAlternatives];
  float alternative_logprobs[kMostAlternatives];
};

// The best token of a piece of the vocabulary, and what is wrong in it.
struct PeakPart {
  float logit;
  int32_t id;
  int32_t flags;
  int32_t unused;
};

// One sampling step for `rows` rows. Pointers are to the memory of whoever samples.
struct SampleStep {
  int64_t rows, vocab;
  const float* logits;     // [rows, vocab]
  SamplerState* states;    // [rows]; step advances
  int32_t* answer_counts;  // [rows, vocab], see Penalties; used where a row penalizes
  float* penalized;        // [rows, vocab], scratch
  PeakPart* parts;         // [rows, 2, kPeakParts], scratch: of the logits, of the penalized ones
  float* lane_sums;        // [rows, logit_blocks(vocab), kLogitLanes], scratch
  double* block_sums;      // [rows, logit_blocks(vocab)], scratch
  SampledRow* sampled;     // [rows]
};

// Bytes of scratch memory for a step of `rows` rows, and where each part of SampleStep lies in it.
int64_t sample_scratch_bytes(int64_t rows, int64_t vocab);
void place_sample_scratch(SampleStep* step, char* scratch);

// The row's token as Sampler gives it; `at` is its number in the answer, `logprobs` as in SamplingOptions.
// Throws UnusableLogitsError, in Sampler's words, when the row's status says so.
SampledToken sampled_token(const SampledRow& row, uint64_t at, int64_t logprobs);

namespace cpu {
void sample_rows(const SampleStep& step);
}
namespace cuda {
void sample_rows(const SampleStep& step, CUstream_st* stream);
}

}  // namespace qwen2vl
