#include "device/step_program.h"

#include <string>
#include <utility>

#include "common/error.h"

namespace qwen2vl {

StepProgram::StepProgram(std::shared_ptr<Device> device, std::shared_ptr<DeviceCache> cache,
                         std::shared_ptr<DeviceEngine> prompts, int64_t most_rows, const int64_t* past_length,
                         bool early)
    : device_(std::move(device)),
      cache_(std::move(cache)),
      prompts_(std::move(prompts)),
      most_rows_(most_rows),
      past_length_(past_length),
      early_(early) {
  if (!decode_attention_fits(cache_->head_dim())) {
    throw InputError("attention over heads of " + std::to_string(cache_->head_dim()) +
                     " numbers: the GPU's kernel takes 32, 64 or 128");
  }
}

void StepProgram::add(const LinearStep& step) {
  LinearStep largest = step;
  largest.rows = most_rows_;
  const auto bytes = static_cast<size_t>(linear_scratch_bytes(largest));
  if (bytes > linear_scratch_.size()) linear_scratch_ = DeviceBlock(device_, bytes);
  operations_.emplace_back(step);
}

void StepProgram::add_attention(int64_t layer, int64_t heads, const void* q, const void* k, const void* v,
                                void* output) {
  if (heads < 1 || heads % cache_->kv_heads() != 0) {
    throw InputError(std::to_string(heads) + " query heads cannot share " +
                     std::to_string(cache_->kv_heads()) + " key/value heads");
  }
  const auto bytes = static_cast<size_t>(decode_attention_scratch(most_rows_, heads, cache_->head_dim()));
  if (bytes > attention_scratch_.size()) attention_scratch_ = DeviceBlock(device_, bytes);
  operations_.emplace_back(
      DecodeAttention{cache_->layout(), layer, 0, heads, past_length_, q, k, v, output, nullptr, 0});
}

void* StepProgram::allocate(int64_t width, FloatType type) {
  blocks_.emplace_back(device_, most_rows_ * width * float_size(type));
  return blocks_.back().as<void>();
}

void StepProgram::enqueue(const EngineStep& step) {
  if (step.prompt) return prompts_->enqueue(step);
  if (step.rows > most_rows_ || step.tokens != 1) {
    throw Error("a decode step of " + std::to_string(step.rows) + " rows and " + std::to_string(step.tokens) +
                " tokens does not fit its program");
  }
  bool early = false;  // the first has whatever in front of it
  for (const Operation& operation : operations_) {
    if (const auto* linear = std::get_if<LinearStep>(&operation)) {
      LinearStep now = *linear;
      now.rows = step.rows;
      now.early = early ? 1 : 0;
      device_->linear(now, linear_scratch_.as<void>());
    } else {
      DecodeAttention now = std::get<DecodeAttention>(operation);
      now.rows = step.rows;
      now.scratch = attention_scratch_.as<void>();
      now.early = early;
      device_->decode_attention(now);
    }
    early = early_ && step.rows <= kFewLinearRows;  // more are a library's, which knows nothing of it
  }
}

}  // namespace qwen2vl
