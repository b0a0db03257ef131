#include "cuda/onnx_session.h"

#include <cstdlib>
#include <utility>

#include "common/error.h"
#include "cuda/on_device.h"

namespace qwen2vl::cuda {

namespace {

using namespace onnx;

constexpr int kDeviceAllocator = 0, kDefaultMemory = 0, kErrorsOnly = 3;

template <typename T, int Position, typename... Arguments, typename... Given>
Owned<T> make(const char* what, Function<Position, Arguments...> function, Given... given) {
  T* object = nullptr;
  call(what, function, given..., &object);
  return Owned<T>(object);
}

void add_cuda(SessionOptions* options, const OnnxSession::Options& cuda) {
  const auto provider = make<CudaOptions>("the CUDA provider's options", kCreateCudaOptions);
  std::vector<const char*> keys, values;
  void* stream = nullptr;
  for (const auto& [key, value] : cuda) {
    if (key == "user_compute_stream") {
      stream = reinterpret_cast<void*>(std::strtoull(value.c_str(), nullptr, 10));
      continue;
    }
    keys.push_back(key.c_str());
    values.push_back(value.c_str());
  }
  call("the CUDA provider's options", kUpdateCudaOptions, provider.get(), keys.data(), values.data(),
       keys.size());
  if (stream != nullptr) {
    call("the CUDA provider's stream", kUpdateCudaOption, provider.get(), "user_compute_stream", stream);
  }
  call("adding the CUDA provider", kAppendCudaProvider, options, provider.get());
}

}  // namespace

OnnxSession::OnnxSession(const std::string& model, const std::vector<OnnxTensor>& weights,
                         const Options& entries, const Options* cuda)
    : env_(make<Env>("creating its environment", kCreateEnv, kErrorsOnly, "qwen2vl")),
      host_(
          make<MemoryInfo>("naming memory", kCreateMemoryInfo, "Cpu", kDeviceAllocator, 0, kDefaultMemory)) {
  const auto options = make<SessionOptions>("session options", kCreateSessionOptions);
  call("session options", kDisableMemPattern, options.get());
  call("session options", kSetSessionLogSeverityLevel, options.get(), kErrorsOnly);
  for (const auto& [key, value] : entries) {
    call("session options", kAddSessionConfigEntry, options.get(), key.c_str(), value.c_str());
  }
  if (cuda != nullptr) {
    const auto id = cuda->find("device_id");
    const int device = id == cuda->end() ? 0 : std::atoi(id->second.c_str());
    device_ = make<MemoryInfo>("naming memory", kCreateMemoryInfo, "Cuda", kDeviceAllocator, device,
                               kDefaultMemory);
    gpu_ = device;
    add_cuda(options.get(), *cuda);
    if (cuda->count("enable_cuda_graph") > 0) worker_ = std::make_unique<Worker>();
  }
  check(add_operators(options.get()), "its operators");
  std::vector<const char*> names;
  std::vector<const Value*> values;
  for (const OnnxTensor& weight : weights) {
    weights_.push_back(value(weight));
    names.push_back(weight.name.c_str());
    values.push_back(weights_.back().get());
  }
  if (!names.empty()) {
    call("adding weights", kAddExternalInitializers, options.get(), names.data(), values.data(),
         names.size());
  }
  const OnDevice on(gpu_);
  session_ = make<Session>("loading a graph", kCreateSessionFromArray, env_.get(),
                           static_cast<const void*>(model.data()), model.size(), options.get());
}

OnnxSession::~OnnxSession() {
  try {
    const OnDevice on(gpu_);
    session_.reset();
  } catch (const DeviceError&) {  // CUDA is gone already: there is nothing left to give back
  }
}

Owned<Value> OnnxSession::value(const OnnxTensor& tensor) const {
  const MemoryInfo* const memory = tensor.on_host || !device_ ? host_.get() : device_.get();
  return make<Value>(tensor.name.c_str(), kCreateTensor, memory, tensor.data, tensor.bytes,
                     tensor.shape.data(), tensor.shape.size(), tensor.type);
}

std::shared_ptr<OnnxSession::Bound> OnnxSession::bind(const std::vector<OnnxTensor>& tensors,
                                                      const Options& run_entries) const {
  auto bound = std::make_shared<Bound>();
  bound->binding = make<Binding>("binding", kCreateIoBinding, session_.get());
  bound->options = make<RunOptions>("run options", kCreateRunOptions);
  for (const auto& [key, value] : run_entries) {
    call("run options", kAddRunConfigEntry, bound->options.get(), key.c_str(), value.c_str());
  }
  for (const OnnxTensor& tensor : tensors) {
    bound->values.push_back(value(tensor));
    const char* const name = tensor.name.c_str();
    const Value* const memory = bound->values.back().get();
    if (tensor.output) {
      call(name, kBindOutput, bound->binding.get(), name, memory);
    } else {
      call(name, kBindInput, bound->binding.get(), name, memory);
    }
  }
  return bound;
}

void OnnxSession::run(const Bound& bound) const {
  const auto run = [&] {
    const OnDevice on(gpu_);
    call("a run", kRunWithBinding, session_.get(), bound.options.get(), bound.binding.get());
  };
  if (worker_) {
    worker_->run(run);
  } else {
    run();
  }
}

}  // namespace qwen2vl::cuda
