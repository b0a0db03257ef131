#include "sampling/sample_kernel.h"

#include <cmath>
#include <limits>
#include <string>

#include "common/error.h"
#include "sampling/sampler.h"

namespace qwen2vl {

SamplerState sampler_state(const SamplingOptions& options) {
  options.validate();
  if (options.logprobs > kMostAlternatives) {
    throw InputError("logprobs=" + std::to_string(options.logprobs) +
                     " is more than the GPU's sampler reports, " + std::to_string(kMostAlternatives) +
                     " a token");
  }
  SamplerState state{};
  state.seed = options.seed;
  state.greedy = options.greedy();
  state.inverse_temperature = state.greedy ? 1.0f : static_cast<float>(1.0 / options.temperature);
  state.penalizes = options.penalizes();
  state.logprobs = static_cast<int32_t>(options.logprobs);
  state.top_k = options.top_k;
  state.top_p = options.top_p;
  state.min_p_depth = options.min_p > 0 ? options.temperature * std::log(options.min_p)
                                        : -std::numeric_limits<double>::infinity();
  state.presence_penalty = options.presence_penalty;
  state.frequency_penalty = options.frequency_penalty;
  state.repetition_penalty = static_cast<float>(options.repetition_penalty);
  return state;
}

namespace {

int64_t aligned(int64_t bytes) { return (bytes + 255) / 256 * 256; }

struct ScratchSizes {
  int64_t penalized, parts, lane_sums, block_sums;
  ScratchSizes(int64_t rows, int64_t vocab) {
    const int64_t blocks = logit_blocks(vocab);
    penalized = aligned(rows * vocab * sizeof(float));
    parts = aligned(rows * 2 * kPeakParts * sizeof(PeakPart));
    lane_sums = aligned(rows * blocks * kLogitLanes * sizeof(float));
    block_sums = aligned(rows * blocks * sizeof(double));
  }
};

}  // namespace

int64_t sample_scratch_bytes(int64_t rows, int64_t vocab) {
  const ScratchSizes sizes(rows, vocab);
  return sizes.penalized + sizes.parts + sizes.lane_sums + sizes.block_sums;
}

void place_sample_scratch(SampleStep* step, char* scratch) {
  const ScratchSizes sizes(step->rows, step->vocab);
  step->penalized = reinterpret_cast<float*>(scratch);
  scratch += sizes.penalized;
  step->parts = reinterpret_cast<PeakPart*>(scratch);
  scratch += sizes.parts;
  step->lane_sums = reinterpret_cast<float*>(scratch);
  scratch += sizes.lane_sums;
  step->block_sums = reinterpret_cast<double*>(scratch);
}

SampledToken sampled_token(const SampledRow& row, uint64_t at, int64_t logprobs) {
  if (row.status != 0) {
    throw UnusableLogitsError(unusable_logits_message(at, row.status & kAfterPenalties, row.status & kHasNan,
                                                      row.status & kHasInfinity));
  }
  SampledToken token;
  token.id = row.id;
  if (logprobs < 0) return token;
  token.logprob = row.logprob;
  for (int32_t i = 0; i < row.alternatives; ++i) {
    token.alternatives.push_back({row.alternative_ids[i], row.alternative_logprobs[i]});
  }
  return token;
}

}  // namespace qwen2vl
