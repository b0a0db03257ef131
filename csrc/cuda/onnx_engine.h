#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>

#include "cuda/onnx_session.h"
#include "device/device_engine.h"

namespace qwen2vl::cuda {

// Runs decoder steps in ONNX Runtime without entering Python, except for the first step of each shape. What
// can't be called through the C API has DeviceDecoderEngine in Python (backends/cuda/executors.py) instead.
class OnnxEngine : public DeviceEngine {
 public:
  using Bound = std::shared_ptr<OnnxSession::Bound>;
  // Binds what a step reads and writes to its session; the address is that of the number of
  // EngineStep::longest, on the host.
  using Bind =
      std::function<Bound(int64_t first_row, int64_t rows, int64_t tokens, bool prompt, uintptr_t longest)>;

  // answer, prompt: the sessions of decode and prefill steps, often the same.
  OnnxEngine(std::shared_ptr<OnnxSession> answer, std::shared_ptr<OnnxSession> prompt, Bind bind);

  void enqueue(const EngineStep& step) override;

 private:
  Bound bind(const EngineStep& step);

  std::shared_ptr<OnnxSession> answer_, prompt_;
  Bind bind_;
  int32_t longest_ = 0;
  std::map<int64_t, Bound> answer_steps_;                      // by rows
  std::map<std::pair<int64_t, int64_t>, Bound> prompt_steps_;  // row, tokens
};

}  // namespace qwen2vl::cuda
