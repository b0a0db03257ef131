#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "common/error.h"

// ONNX Runtime's C API, as far as sessions need it. The wheel ships the library but no headers; the API is a
// table of functions that only ever grows at the end, and these are positions in it with their arguments.
namespace qwen2vl::cuda::onnx {

constexpr uint32_t kApiVersion = 17;  // newer libraries serve it, too

struct Status;  // null: no error
struct Env;
struct SessionOptions;
struct Session;
struct RunOptions;
struct Binding;
struct Value;
struct MemoryInfo;
struct CudaOptions;

struct ApiBase {
  void* const* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

// The table of the library that Python uses. Throws DeviceError before that library has handed it over
// (RegisterCustomOps, in onnx_api.cc).
void* const* api();

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

// Calls one of them. Throws DeviceError with the library's message; `what` names the call, for a person.
template <int Position, typename... Arguments>
void call(const char* what, Function<Position, Arguments...>, typename Same<Arguments>::Type... arguments) {
  void* const* const table = api();
  Status* const status = reinterpret_cast<Status* (*)(Arguments...)>(table[Position])(arguments...);
  if (status == nullptr) return;
  const std::string message = reinterpret_cast<const char* (*)(const Status*)>(table[2])(status);
  reinterpret_cast<void (*)(Status*)>(table[93])(status);
  throw DeviceError(std::string("ONNX Runtime failed at ") + what + ": " + message);
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
    reinterpret_cast<void (*)(T*)>(api()[position])(object);
  }
};
template <typename T>
using Owned = std::unique_ptr<T, Release>;

}  // namespace qwen2vl::cuda::onnx
