#pragma once

#include <functional>

#include "cuda_runtime_api.h"

namespace emulated_cuda {

// Whether the calling thread may make a call that waits or allocates while streams are recorded, by CUDA's
// rules. A recording of its own is spoilt by a call that it may not make.
bool may_call_unsafe();
bool is_recorded(cudaStream_t stream);
// Runs whatever is queued anywhere.
void finish_all();
// Whether kernels do nothing.
void set_idle(bool idle);
// Kernels launched or recorded so far.
uint64_t launches();
// One thing that a stream does, and what of it may be done before its turn, if anything.
struct Work {
  std::function<void()> run, start = nullptr;
  bool kernel = false;
};
// Adds work to a stream, or to what is recorded there.
cudaError_t enqueue(cudaStream_t stream, Work work);

}  // namespace emulated_cuda
