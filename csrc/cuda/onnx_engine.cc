#include "cuda/onnx_engine.h"

namespace qwen2vl::cuda {

OnnxEngine::OnnxEngine(std::shared_ptr<OnnxSession> answer, std::shared_ptr<OnnxSession> prompt, Bind bind)
    : answer_(std::move(answer)), prompt_(std::move(prompt)), bind_(std::move(bind)) {}

void OnnxEngine::enqueue(const EngineStep& step) {
  longest_ = static_cast<int32_t>(step.longest);
  if (!step.prompt) {
    Bound& bound = answer_steps_[step.rows];
    if (!bound) bound = bind(step);
    answer_->run(*bound);
    return;
  }
  const std::pair<int64_t, int64_t> shape{step.first_row, step.tokens};
  auto bound = prompt_steps_.find(shape);
  if (bound == prompt_steps_.end()) {
    if (prompt_steps_.size() == kMostPromptShapes) prompt_steps_.clear();
    bound = prompt_steps_.emplace(shape, bind(step)).first;
  }
  prompt_->run(*bound->second);
}

OnnxEngine::Bound OnnxEngine::bind(const EngineStep& step) {
  return bind_(step.first_row, step.rows, step.tokens, step.prompt, reinterpret_cast<uintptr_t>(&longest_));
}

}  // namespace qwen2vl::cuda
