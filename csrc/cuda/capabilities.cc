#include "cuda/capabilities.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <set>
#include <utility>

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
  int multiprocessors = 0, major = 0, reads_pageable = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "asking the GPU");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking the GPU");
  check(cudaDeviceGetAttribute(&reads_pageable, cudaDevAttrPageableMemoryAccessUsesHostPageTables, device),
        "asking the GPU");
  // A kernel that the driver compiles from an older architecture's PTX has no code that waits.
  const bool early_starts = major >= 9 && QWEN2VL_CUDA_NEWEST >= 90;
  return (*known)[device] = {multiprocessors, early_starts, reads_pageable != 0};
}

void share_multiprocessors(const void* kernel) {
  static std::mutex mutex;
  static auto* const asked = new std::set<std::pair<int, const void*>>;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the GPU");
  const std::lock_guard<std::mutex> lock(mutex);
  if (!asked->insert({device, kernel}).second) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                             cudaSharedmemCarveoutMaxShared),
        "preparing a kernel");
}

}  // namespace qwen2vl::cuda
