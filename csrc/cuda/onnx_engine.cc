#include "cuda/onnx_engine.h"

#include <string>

namespace qwen2vl::cuda {

namespace {

// Of prompts: to bind one takes half a millisecond, and a few kilobytes.
constexpr size_t kMostShapes = 64;

}  // namespace

OnnxEngine::OnnxEngine(std::shared_ptr<OnnxSession> answer, std::shared_ptr<OnnxSession> prompt,
                       Tensors tensors, bool recorded)
    : answer_(std::move(answer)),
      prompt_(std::move(prompt)),
      tensors_(std::move(tensors)),
      recorded_(recorded) {}

void OnnxEngine::enqueue(const EngineStep& step) {
  longest_ = static_cast<int32_t>(step.longest);
  if (!step.prompt) {
    std::unique_ptr<OnnxSession::Bound>& bound = answer_steps_[step.rows];
    if (!bound) bound = bind(*answer_, step, recorded_ ? step.rows : -1);
    answer_->run(*bound);
    return;
  }
  const std::pair<int64_t, int64_t> shape{step.first_row, step.tokens};
  auto bound = prompt_steps_.find(shape);
  if (bound == prompt_steps_.end()) {
    if (prompt_steps_.size() == kMostShapes) prompt_steps_.clear();
    bound = prompt_steps_.emplace(shape, bind(*prompt_, step, -1)).first;
  }
  prompt_->run(*bound->second);
}

std::unique_ptr<OnnxSession::Bound> OnnxEngine::bind(const OnnxSession& session, const EngineStep& step,
                                                     int64_t recording) {
  return session.bind(
      tensors_(step.first_row, step.rows, step.tokens, step.prompt, reinterpret_cast<uintptr_t>(&longest_)),
      {{"disable_synchronize_execution_providers", "1"}, {"gpu_graph_id", std::to_string(recording)}});
}

}  // namespace qwen2vl::cuda
