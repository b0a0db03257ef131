#include "cuda/error.h"

#include <string>

namespace qwen2vl::cuda {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // an error that is not sticky would else be reported by the next call, too
  const std::string message =
      std::string(what) + ": " + cudaGetErrorString(status) + " (" + cudaGetErrorName(status) + ")";
  if (status == cudaErrorMemoryAllocation) {
    throw MemoryLimitError(message + "; lower max_length, max_batch or max_pixels");
  }
  throw DeviceError(message);
}

}  // namespace qwen2vl::cuda
