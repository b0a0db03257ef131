#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/error.h"
#include "onnxruntime/onnxruntime_api.h"

// ONNX Runtime's C API, as far as sessions need it: positions in its table and the functions' arguments.
namespace qwen2vl::cuda::onnx {

using ort::Api;
using ort::SessionOptions;
using ort::Status;
using ort::Value;
struct Env;
struct Session;
struct RunOptions;
struct Binding;
struct MemoryInfo;
struct CudaOptions;

// The API of the library that Python uses. Throws DeviceError before that library has handed it over
// (RegisterCustomOps, in onnx_api.cc).
const Api& api();

// Gives sessions made with these options the project's own operators on a GPU (linear_operator.h).
Status* add_operators(SessionOptions* options);

template <int Position, typename... Arguments>
struct Function {};

constexpr Function<3, int, const char*, Env**> kCreateEnv{};
constexpr Function<8, Env*, const void*, size_t, const SessionOptions*, Session**> kCreateSessionFromArray{};
constexpr Function<10, SessionOptions**> kCreateSessionOptions{};
constexpr Function<17, SessionOptions*> kDisableMemPattern{};
constexpr Function<22, SessionOptions*, int> kSetSessionLogSeverityLevel{};
constexpr Function<39, RunOptions**> kCreateRunOptions{};
constexpr Function<49, const MemoryInfo*, void*, size_t, const int64_t*, size_t, int, Value**>
    kCreateTensor{};
constexpr Function<68, const char*, int, int, int, MemoryInfo**> kCreateMemoryInfo{};
constexpr Function<130, SessionOptions*, const char*, const char*> kAddSessionConfigEntry{};
constexpr Function<133, Session*, const RunOptions*, const Binding*> kRunWithBinding{};
constexpr Function<134, Session*, Binding**> kCreateIoBinding{};
constexpr Function<136, Binding*, const char*, const Value*> kBindInput{};
constexpr Function<137, Binding*, const char*, const Value*> kBindOutput{};
constexpr Function<165, RunOptions*, const char*, const char*> kAddRunConfigEntry{};
constexpr Function<204, SessionOptions*, const CudaOptions*> kAppendCudaProvider{};
constexpr Function<205, CudaOptions**> kCreateCudaOptions{};
constexpr Function<206, CudaOptions*, const char* const*, const char* const*, size_t> kUpdateCudaOptions{};
constexpr Function<210, SessionOptions*, const char* const*, const Value* const*, size_t>
    kAddExternalInitializers{};
constexpr Function<263, CudaOptions*, const char*, void*> kUpdateCudaOption{};

template <typename T>
struct Same {
  using Type = T;
};

// Throws DeviceError with the library's message; `what` names the call, for a person.
inline void check(Status* status, const char* what) {
  if (status == nullptr) return;
  const Api& api = onnx::api();
  const std::string message = api.at<const char*(const Status*)>(Api::kGetErrorMessage)(status);
  api.at<void(Status*)>(Api::kReleaseStatus)(status);
  throw DeviceError(std::string("ONNX Runtime failed at ") + what + ": " + message);
}

// Calls one of the functions, and checks what it says.
template <int Position, typename... Arguments>
void call(const char* what, Function<Position, Arguments...>, typename Same<Arguments>::Type... arguments) {
  check(reinterpret_cast<Status* (*)(Arguments...)>(api().table[Position])(arguments...), what);
}

// What the library made and the caller releases.
struct Release {
  void operator()(Env* object) const { at(92, object); }
  void operator()(MemoryInfo* object) const { at(94, object); }
  void operator()(Session* object) const { at(95, object); }
  void operator()(Value* object) const { at(96, object); }
  void operator()(RunOptions* object) const { at(97, object); }
  void operator()(SessionOptions* object) const { at(100, object); }
  void operator()(Binding* object) const { at(135, object); }
  void operator()(CudaOptions* object) const { at(208, object); }

 private:
  template <typename T>
  static void at(int position, T* object) {
    reinterpret_cast<void (*)(T*)>(api().table[position])(object);
  }
};
template <typename T>
using Owned = std::unique_ptr<T, Release>;

}  // namespace qwen2vl::cuda::onnx
