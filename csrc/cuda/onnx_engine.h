#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/onnx_session.h"
#include "device/device_engine.h"

namespace qwen2vl::cuda {

// Runs decoder steps in ONNX Runtime without entering Python, except for the first step of each shape.
class OnnxEngine : public DeviceEngine {
 public:
  // What a step reads and writes; the address is that of the number of EngineStep::longest, on the host.
  using Tensors = std::function<std::vector<OnnxTensor>(int64_t first_row, int64_t rows, int64_t tokens,
                                                        bool prompt, uintptr_t longest)>;

  // answer, prompt: the sessions of decode and prefill steps, often the same. recorded: `answer` records its
  // runs, one recording for each number of rows, and replays them.
  OnnxEngine(std::shared_ptr<OnnxSession> answer, std::shared_ptr<OnnxSession> prompt, Tensors tensors,
             bool recorded);

  void enqueue(const EngineStep& step) override;

 private:
  std::unique_ptr<OnnxSession::Bound> bind(const OnnxSession& session, const EngineStep& step,
                                           int64_t recording);

  std::shared_ptr<OnnxSession> answer_, prompt_;
  Tensors tensors_;
  bool recorded_;
  int32_t longest_ = 0;
  std::map<int64_t, std::unique_ptr<OnnxSession::Bound>> answer_steps_;                      // by rows
  std::map<std::pair<int64_t, int64_t>, std::unique_ptr<OnnxSession::Bound>> prompt_steps_;  // row, tokens
};

}  // namespace qwen2vl::cuda
