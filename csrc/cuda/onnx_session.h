#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/worker.h"
#include "cuda/onnx_api.h"

namespace qwen2vl::cuda {

// Memory that a session reads or writes as the input or output `name`.
struct OnnxTensor {
  std::string name;
  int type;  // ONNX's number of the element type
  std::vector<int64_t> shape;
  void* data;
  size_t bytes;
  bool on_host;
  bool output;
};

// A graph loaded by ONNX Runtime, run without Python.
class OnnxSession {
 public:
  using Options = std::map<std::string, std::string>;

  // One set of bound inputs and outputs.
  struct Bound {
    std::vector<onnx::Owned<onnx::Value>> values;
    onnx::Owned<onnx::Binding> binding;
    onnx::Owned<onnx::RunOptions> options;
  };

  // model: a serialized graph; weights: its external tensors, in host memory that outlives the session.
  // cuda: the CUDA provider's options; without them the graph runs on the CPU. Throws DeviceError with ONNX
  // Runtime's own message.
  OnnxSession(const std::string& model, const std::vector<OnnxTensor>& weights, const Options& entries,
              const Options* cuda);
  ~OnnxSession();

  // run_entries: the run's options by name.
  std::shared_ptr<Bound> bind(const std::vector<OnnxTensor>& tensors, const Options& run_entries) const;
  // Queues a run, on a thread of the session's own where the provider records. Needs no Python lock.
  void run(const Bound& bound) const;

 private:
  onnx::Owned<onnx::Value> value(const OnnxTensor& tensor) const;
  onnx::Owned<onnx::Env> env_;
  onnx::Owned<onnx::MemoryInfo> host_, device_;
  std::vector<onnx::Owned<onnx::Value>> weights_;
  onnx::Owned<onnx::Session> session_;
  // The CUDA provider's, which it leaves the calling thread's: whoever calls it gives the thread its own
  // back.
  std::optional<int> gpu_;
  // Where the CUDA provider records: it keeps recordings and library handles for each thread that calls it,
  // until the session ends, and answers come from many threads (a stream has its own).
  std::unique_ptr<Worker> worker_;
};

}  // namespace qwen2vl::cuda
