#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <vector>

#include "common/error.h"
#include "onnxruntime/onnxruntime_api.h"

namespace qwen2vl::ort {

inline void check(Status* status) {
  if (status != nullptr) throw Error("ONNX Runtime refused a call of its own interface");
}

inline void* data_of(const Api& api, const Value* value) {
  void* data = nullptr;
  check(api.at<Status*(Value*, void**)>(Api::kGetTensorMutableData)(const_cast<Value*>(value), &data));
  return data;
}

inline std::vector<int64_t> shape_of(const Api& api, const Value* value) {
  Shape* shape = nullptr;
  check(api.at<Status*(const Value*, Shape**)>(Api::kGetTensorTypeAndShape)(value, &shape));
  size_t count = 0;
  check(api.at<Status*(const Shape*, size_t*)>(Api::kGetDimensionsCount)(shape, &count));
  std::vector<int64_t> dims(count);
  check(api.at<Status*(const Shape*, int64_t*, size_t)>(Api::kGetDimensions)(shape, dims.data(), count));
  api.at<void(Shape*)>(Api::kReleaseTensorTypeAndShapeInfo)(shape);
  return dims;
}

// A tensor that is the same at every call, or null.
inline const Value* constant_input(const Api& api, const KernelInfo* info, size_t index) {
  int constant = 0;
  const Value* value = nullptr;
  check(api.at<Status*(const KernelInfo*, size_t, int*, const Value**)>(Api::kKernelInfoGetConstantInput)(
      info, index, &constant, &value));
  return constant ? value : nullptr;
}

// A number among the node's attributes, 0 where it has none of that name.
template <typename T>
T number_attribute(const Api& api, const KernelInfo* info, const char* name, Api::Position getter) {
  T value = 0;
  Status* status = api.at<Status*(const KernelInfo*, const char*, T*)>(getter)(info, name, &value);
  if (status == nullptr) return value;
  api.at<void(Status*)>(Api::kReleaseStatus)(status);
  return 0;
}
inline int64_t integer_attribute(const Api& api, const KernelInfo* info, const char* name) {
  return number_attribute<int64_t>(api, info, name, Api::kKernelInfoGetAttributeInt64);
}
inline float float_attribute(const Api& api, const KernelInfo* info, const char* name) {
  return number_attribute<float>(api, info, name, Api::kKernelInfoGetAttributeFloat);
}

// One call of a kernel: its inputs, outputs and the engine's threads.
class Call {
 public:
  Call(const Api& api, KernelContext* context) : api_(api), context_(context) {}

  // Null for an optional input that was left out.
  const Value* input(size_t index) const {
    const Value* value = nullptr;
    check(api_.at<Status*(const KernelContext*, size_t, const Value**)>(Api::kKernelContextGetInput)(
        context_, index, &value));
    return value;
  }

  template <typename T>
  const T* data(size_t index) const {
    const Value* value = input(index);
    return value == nullptr ? nullptr : static_cast<const T*>(data_of(api_, value));
  }

  // The stream that a GPU's provider works on; null on the CPU.
  void* stream() const {
    void* stream = nullptr;
    check(api_.at<Status*(const KernelContext*, void**)>(Api::kKernelContextGetGpuStream)(context_, &stream));
    return stream;
  }

  std::vector<int64_t> shape(size_t index) const { return shape_of(api_, input(index)); }

  template <typename T>
  T* output(size_t index, const std::vector<int64_t>& shape) const {
    Value* value = nullptr;
    check(api_.at<Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>(
        Api::kKernelContextGetOutput)(context_, index, shape.data(), shape.size(), &value));
    return static_cast<T*>(data_of(api_, value));
  }

  // body(i) for i in [0, count), on the threads that the session's operators share; each takes the next when
  // it is done with one. Rethrows what a body throws.
  void parallel(size_t count, const std::function<void(size_t)>& body) const {
    struct Work {
      const std::function<void(size_t)>& body;
      std::mutex mutex;
      std::exception_ptr failure;
    } work{body, {}, nullptr};
    const auto one = [](void* data, size_t index) {
      auto& work = *static_cast<Work*>(data);
      try {
        work.body(index);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(work.mutex);
        work.failure = std::current_exception();
      }
    };
    if (count == 1) return body(0);
    check(api_.at<Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(
        Api::kKernelContextParallelFor)(context_, one, count, count, &work));
    if (work.failure) std::rethrow_exception(work.failure);
  }

 private:
  const Api& api_;
  KernelContext* context_;
};

}  // namespace qwen2vl::ort
