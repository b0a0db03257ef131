#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "device/device.h"
#include "device/device_cache.h"
#include "device/device_engine.h"

namespace qwen2vl {

// A decode step as a list of the project's own kernels over fixed addresses, made of the decoder's lowered
// graph when a session loads (backends/cuda/program.py). It can be recorded whole. Prompts go to another
// engine.
class StepProgram : public DeviceEngine {
 public:
  // most_rows: rows of the largest step. past_length: [most_rows], on the device. early: kernels may start
  // before the one in front of them is done. Throws InputError: heads that no attention kernel takes.
  StepProgram(std::shared_ptr<Device> device, std::shared_ptr<DeviceCache> cache,
              std::shared_ptr<DeviceEngine> prompts, int64_t most_rows, const int64_t* past_length,
              bool early);

  // Adds an operation; its `rows` are set when it runs.
  void add(const LinearStep& step);
  // The attention of a layer with so many query heads: see DecodeAttention.
  void add_attention(int64_t layer, int64_t heads, const void* q, const void* k, const void* v, void* output);
  // What operations leave for the next ones: [most_rows, width] of `type`, as long as the program lives.
  void* allocate(int64_t width, FloatType type);

  void enqueue(const EngineStep& step) override;
  bool recordable() const override { return true; }

 private:
  using Operation = std::variant<LinearStep, DecodeAttention>;

  std::shared_ptr<Device> device_;
  std::shared_ptr<DeviceCache> cache_;
  std::shared_ptr<DeviceEngine> prompts_;
  int64_t most_rows_;
  const int64_t* past_length_;
  bool early_;
  std::vector<Operation> operations_;
  std::vector<DeviceBlock> blocks_;
  DeviceBlock attention_scratch_, linear_scratch_;
};

}  // namespace qwen2vl
