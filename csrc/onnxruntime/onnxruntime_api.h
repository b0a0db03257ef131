#pragma once

#include <cstddef>
#include <cstdint>

// The few parts of ONNX Runtime's C API that operators of our own need (sessions': cuda/onnx_api.h). The
// wheel ships the library but no headers; its API is a table of functions that only ever grows at the end,
// and these are positions in it.
namespace qwen2vl::ort {

constexpr uint32_t kApiVersion = 17;  // the first with ParallelFor; newer libraries serve it, too

struct Status;  // null: no error
struct Value;
struct Shape;
struct KernelInfo;
struct KernelContext;
struct Domain;
struct SessionOptions;

enum ElementType : int { kFloat = 1, kUInt8 = 2, kInt8 = 3, kInt64 = 7, kFloat16 = 10, kBFloat16 = 16 };

using Function = void (*)();

// OrtApi.
struct Api {
  Function table[275];

  enum Position : int {
    kCreateStatus = 0,
    kGetErrorMessage = 2,
    kCreateCustomOpDomain = 26,
    kCustomOpDomainAdd = 27,
    kAddCustomOpDomain = 28,
    kGetTensorMutableData = 51,
    kGetDimensionsCount = 61,
    kGetDimensions = 62,
    kGetTensorTypeAndShape = 65,
    kKernelInfoGetAttributeFloat = 85,
    kKernelInfoGetAttributeInt64 = 86,
    kKernelContextGetInput = 90,
    kKernelContextGetOutput = 91,
    kReleaseStatus = 93,
    kReleaseTensorTypeAndShapeInfo = 99,
    kKernelContextGetGpuStream = 193,
    kKernelInfoGetConstantInput = 249,
    kKernelContextParallelFor = 274,
  };

  template <typename Signature>
  Signature* at(Position position) const {
    return reinterpret_cast<Signature*>(table[position]);
  }
};

// OrtApiBase.
struct ApiBase {
  const Api* (*get_api)(uint32_t version);
  const char* (*get_version)();
};

// OrtCustomOp at version 17: an operator's schema and its kernel's functions.
struct CustomOp {
  uint32_t version = kApiVersion;
  void* (*create_kernel)(const CustomOp*, const Api*, const KernelInfo*) = nullptr;
  const char* (*name)(const CustomOp*) = nullptr;
  const char* (*provider)(const CustomOp*) = nullptr;
  ElementType (*input_type)(const CustomOp*, size_t) = nullptr;
  size_t (*input_count)(const CustomOp*) = nullptr;
  ElementType (*output_type)(const CustomOp*, size_t) = nullptr;
  size_t (*output_count)(const CustomOp*) = nullptr;
  void (*compute)(void*, KernelContext*) = nullptr;
  void (*destroy)(void*) = nullptr;
  int (*input_characteristic)(const CustomOp*, size_t) = nullptr;  // 0 required, 1 optional
  int (*output_characteristic)(const CustomOp*, size_t) = nullptr;
  int (*input_memory_type)(const CustomOp*, size_t) = nullptr;
  int (*variadic_input_min_arity)(const CustomOp*) = nullptr;
  int (*variadic_input_homogeneity)(const CustomOp*) = nullptr;
  int (*variadic_output_min_arity)(const CustomOp*) = nullptr;
  int (*variadic_output_homogeneity)(const CustomOp*) = nullptr;
  Status* (*create_kernel_v2)(const CustomOp*, const Api*, const KernelInfo*, void**) = nullptr;
  Status* (*compute_v2)(void*, KernelContext*) = nullptr;
  Status* (*infer_output_shape)(const CustomOp*, void*) = nullptr;
  int (*start_version)(const CustomOp*) = nullptr;
  int (*end_version)(const CustomOp*) = nullptr;
  Function unused[4] = {};  // of later versions
};

}  // namespace qwen2vl::ort
