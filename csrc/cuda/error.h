#pragma once

#include <cuda_runtime_api.h>

#include "common/error.h"

namespace qwen2vl::cuda {

// Throws unless `status` is success: MemoryLimitError when the device is out of memory, DeviceError
// otherwise. `what` names the call, for a person.
void check(cudaError_t status, const char* what);

}  // namespace qwen2vl::cuda
