// The emulated GPU as a whole, and what tests call by name.

#include <cstring>
#include <mutex>

#include "cuda_runtime_api.h"
#include "launch.h"
#include "memory.h"
#include "stream.h"

constexpr int kDevices = 2;
#ifdef QWEN2VL_EMULATED_PTX
constexpr int kMajor = QWEN2VL_EMULATED_PTX / 10;  // compute capability: the kernels'
#else
constexpr int kMajor = 9;
#endif
constexpr int kMultiprocessors = 4;  // kernels that go by their number take several rounds

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle:
      return "cudaErrorInvalidResourceHandle";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
  }
  return "unknown error";
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= kDevices) return emulated_cuda::fail(cudaErrorInvalidDevice);
  *properties = {};
  std::strcpy(properties->name, "Emulated GPU");
  properties->major = kMajor;
  properties->multiProcessorCount = kMultiprocessors;
  return cudaSuccess;
}

thread_local int current_device = 0;

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

bool emulated_cuda::on_first_gpu() { return current_device == 0; }

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const std::lock_guard<std::recursive_mutex> lock(emulated_cuda::gpu());
  const bool device = emulated_cuda::Memory::one().kind(pointer) == emulated_cuda::Kind::kDevice;
  *attributes = {device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered, device ? 0 : -2};
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount            ? kMultiprocessors
           : attribute == cudaDevAttrComputeCapabilityMajor       ? kMajor
           : attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin ? emulated_cuda::kMostSharedBytes
                                                                  : 0;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return emulated_cuda::fail(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

extern "C" {

// See Memory::share.
__attribute__((visibility("default"))) void emulated_cuda_share(int shared) {
  const std::lock_guard<std::recursive_mutex> lock(emulated_cuda::gpu());
  emulated_cuda::finish_all();
  emulated_cuda::Memory::one().share(shared != 0);
}

// Queues a call of the host's, as an engine queues its kernels; a recording repeats it.
__attribute__((visibility("default"))) int emulated_cuda_call(cudaStream_t stream, void (*function)()) {
  const std::lock_guard<std::recursive_mutex> lock(emulated_cuda::gpu());
  return emulated_cuda::enqueue(stream, {function});
}

// Kernels that run from here on do nothing, or something again.
__attribute__((visibility("default"))) void emulated_cuda_idle(int idle) {
  const std::lock_guard<std::recursive_mutex> lock(emulated_cuda::gpu());
  emulated_cuda::finish_all();
  emulated_cuda::set_idle(idle != 0);
}

__attribute__((visibility("default"))) uint64_t emulated_cuda_launches() {
  const std::lock_guard<std::recursive_mutex> lock(emulated_cuda::gpu());
  return emulated_cuda::launches();
}

__attribute__((visibility("default"))) int emulated_cuda_recorded(cudaStream_t stream) {
  const std::lock_guard<std::recursive_mutex> lock(emulated_cuda::gpu());
  return emulated_cuda::is_recorded(stream) ? 1 : 0;
}

// Lets the calling thread work on another GPU, as other code of a program may.
__attribute__((visibility("default"))) int emulated_cuda_select(int device) { return cudaSetDevice(device); }
__attribute__((visibility("default"))) int emulated_cuda_selected() { return current_device; }

// The driver's calls that a test records with in another library's place.
__attribute__((visibility("default"))) int cuStreamBeginCapture_v2(cudaStream_t stream, int mode) {
  return cudaStreamBeginCapture(stream, static_cast<cudaStreamCaptureMode>(mode));
}
__attribute__((visibility("default"))) int cuStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return cudaStreamEndCapture(stream, graph);
}
__attribute__((visibility("default"))) int cuGraphDestroy(cudaGraph_t graph) {
  return cudaGraphDestroy(graph);
}
}
