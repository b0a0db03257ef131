#pragma once

#include <memory>
#include <vector>

#include "device/device.h"
#include "sampling/sampler.h"

namespace qwen2vl {

// A device's sampler for the tokens of one answer, with the interface of Sampler: logits come from the host,
// tokens go back there. (A decoder's rows are sampled without either: see DeviceDecoder.)
class RowSampler {
 public:
  RowSampler(std::shared_ptr<Device> device, const SamplingOptions& options, int64_t vocab,
             const std::vector<int32_t>& prompt);
  // logits [count]. Throws InputError unless count is the vocabulary's size, UnusableLogitsError.
  SampledToken sample(const float* logits, int64_t count);
  int64_t logprobs() const { return logprobs_; }

 private:
  std::shared_ptr<Device> device_;
  int64_t vocab_, logprobs_;
  uint64_t chosen_ = 0;
  DeviceBlock logits_, state_, counts_, scratch_, sampled_;
};

}  // namespace qwen2vl
