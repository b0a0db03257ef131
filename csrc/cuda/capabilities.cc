#include "cuda/capabilities.h"

#include <cuda_runtime_api.h>

#include <map>
#include <mutex>
#include <set>
#include <tuple>

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
  int multiprocessors = 0, shared_bytes = 0, major = 0, reads_pageable = 0;
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "asking the GPU");
  check(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "asking the GPU");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "asking the GPU");
  check(cudaDeviceGetAttribute(&reads_pageable, cudaDevAttrPageableMemoryAccessUsesHostPageTables, device),
        "asking the GPU");
  // A kernel that the driver compiles from an older architecture's PTX has no code that waits.
  const bool early_starts = major >= 9 && QWEN2VL_CUDA_NEWEST >= 90;
  return (*known)[device] = {multiprocessors, shared_bytes, early_starts, reads_pageable != 0};
}

namespace {

// Sets a kernel's attribute once for each GPU.
void set_once(const void* kernel, cudaFuncAttribute attribute, int value) {
  static std::mutex mutex;
  static auto* const done = new std::set<std::tuple<int, const void*, cudaFuncAttribute>>;
  int device = 0;
  check(cudaGetDevice(&device), "asking for the GPU");
  const std::lock_guard<std::mutex> lock(mutex);
  const std::tuple setting{device, kernel, attribute};
  if (done->count(setting) > 0) return;
  check(cudaFuncSetAttribute(kernel, attribute, value), "preparing a kernel");
  done->insert(setting);
}

}  // namespace

void share_multiprocessors(const void* kernel) {
  set_once(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}

void allow_shared_memory(const void* kernel, size_t bytes) {
  constexpr size_t kUsual = 48 << 10;
  if (bytes <= kUsual) return;
  set_once(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
           static_cast<int>(capabilities().shared_bytes));
}

}  // namespace qwen2vl::cuda
