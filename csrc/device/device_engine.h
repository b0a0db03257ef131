#pragma once

#include <cstddef>
#include <cstdint>

namespace qwen2vl {

// One run of the decoder on a device, over the fixed buffers of a DeviceDecoder and a DeviceCache.
struct EngineStep {
  int64_t first_row;  // the cache row of the step's row 0
  int64_t rows;       // B
  int64_t tokens;     // T
  int64_t longest;    // the largest present_length of the rows; the cache's capacity in decode steps, whose
                      // lengths the host doesn't wait to know
  bool prompt;        // the tokens are a prompt's, not an answer's own
};

// An inference engine that works on device memory.
class DeviceEngine {
 public:
  virtual ~DeviceEngine() = default;
  // Queues the step on the device's stream and returns. May throw.
  virtual void enqueue(const EngineStep& step) = 0;
  // Whether a decode step can be recorded together with the project's kernels around it.
  virtual bool recordable() const { return false; }
};

// Of prompts, whose bindings an engine in ONNX Runtime keeps: to bind one takes half a millisecond, and a few
// kilobytes.
constexpr size_t kMostPromptShapes = 64;

}  // namespace qwen2vl
