#include "cuda/capabilities.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>

#include "cuda/error.h"

namespace qwen2vl::cuda {

Capabilities capabilities() {
  static std::mutex mutex;
  static auto* const known = new std::map<int, Capabilities>;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the GPU");
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known->find(device);
  if (found != known->end()) return found->second;
  int multiprocessors = 0, major = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "asking the GPU");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking the GPU");
  return (*known)[device] = {multiprocessors, major >= 9};
}

}  // namespace qwen2vl::cuda
