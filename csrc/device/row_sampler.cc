#include "device/row_sampler.h"

#include <limits>
#include <string>
#include <utility>

#include "common/error.h"

namespace qwen2vl {

RowSampler::RowSampler(std::shared_ptr<Device> device, const SamplingOptions& options, int64_t vocab,
                       const std::vector<int32_t>& prompt)
    : device_(std::move(device)), vocab_(vocab), logprobs_(options.logprobs) {
  const SamplerState state = sampler_state(options);
  if (vocab < 1 || vocab > std::numeric_limits<int32_t>::max()) {
    throw InputError("the vocabulary cannot have " + std::to_string(vocab) + " tokens");
  }
  std::vector<int32_t> counts(vocab, -1);
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= vocab) {
      throw InputError("token id " + std::to_string(prompt[i]) + " at position " + std::to_string(i) +
                       " is outside the vocabulary of " + std::to_string(vocab));
    }
    counts[prompt[i]] = 0;
  }
  logits_ = DeviceBlock(device_, vocab * sizeof(float));
  state_ = DeviceBlock(device_, sizeof(state));
  counts_ = DeviceBlock(device_, vocab * sizeof(int32_t));
  scratch_ = DeviceBlock(device_, sample_scratch_bytes(1, vocab));
  sampled_ = DeviceBlock(device_, sizeof(SampledRow));
  device_->upload(state_.as<char>(), &state, sizeof(state));
  device_->upload(counts_.as<char>(), counts.data(), counts.size() * sizeof(int32_t));
}

SampledToken RowSampler::sample(const float* logits, int64_t count) {
  if (count != vocab_) {
    throw InputError("logits have " + std::to_string(count) + " values for a vocabulary of " +
                     std::to_string(vocab_));
  }
  device_->upload(logits_.as<char>(), logits, vocab_ * sizeof(float));
  SampleStep step{};
  step.rows = 1;
  step.vocab = vocab_;
  step.logits = logits_.as<float>();
  step.states = state_.as<SamplerState>();
  step.answer_counts = counts_.as<int32_t>();
  step.sampled = sampled_.as<SampledRow>();
  place_sample_scratch(&step, scratch_.as<char>());
  device_->sample_rows(step);
  SampledRow sampled;
  device_->download(&sampled, step.sampled, sizeof(sampled));
  return sampled_token(sampled, chosen_++, logprobs_);
}

}  // namespace qwen2vl
