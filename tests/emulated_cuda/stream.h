#pragma once

#include <functional>

#include "cuda_runtime_api.h"

namespace emulated_cuda {

// Whether the calling thread may make a call that waits or allocates while streams are recorded, by CUDA's
// rules. A recording of its own is spoilt by a call that it may not make.
bool may_call_unsafe();
// Runs whatever is queued anywhere.
void finish_all();
// Whether kernels, whose work it is given, run.
void set_idle(bool idle);
cudaError_t enqueue_kernel(cudaStream_t stream, std::function<void()> work);
// Adds work to a stream, or to what is recorded there.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);

}  // namespace emulated_cuda
