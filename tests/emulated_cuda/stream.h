#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "block.h"
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
// One thing that a stream does.
struct Work {
  std::function<void()> run;               // of what is no kernel
  std::shared_ptr<Grid> kernel = nullptr;  // may start before its turn
  bool computes = false;                   // in a kernel's place: nothing where kernels do nothing
  uint32_t inside = 0;                     // how much work it consists of, if it does
};
// Adds work to a stream, or to what is recorded there.
cudaError_t enqueue(cudaStream_t stream, Work work);

}  // namespace emulated_cuda
