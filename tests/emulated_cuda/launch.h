#pragma once

#include <cstddef>
#include <functional>

#include "block.h"
#include "cuda_runtime_api.h"

namespace emulated_cuda {

constexpr int kMostSharedBytes = 99 << 10;  // of a block

// Queues a kernel; see cudaLaunchKernelEx. early: see Grid.
cudaError_t launch(const Shape& shape, cudaStream_t stream, bool early, const void* kernel,
                   std::function<void()> body);

// Whether whatever looks like an address in a kernel's parameter is one of the device's, or of host memory
// that it sees. Numbers of kernels are far below addresses.
bool addresses_device(const void* parameter, size_t bytes);

// Whether the calling thread works on the GPU that has memory and streams.
bool on_first_gpu();

// Keeps `error` for cudaGetLastError, and returns it.
cudaError_t fail(cudaError_t error);

}  // namespace emulated_cuda
