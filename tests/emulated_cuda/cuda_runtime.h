#pragma once

// The language of kernels in C++: see cuda_runtime_api.h, and block.h for how a block's threads run.

#include <tuple>
#include <utility>

#include "block.h"
#include "cuda_runtime_api.h"
#include "launch.h"
#ifdef QWEN2VL_EMULATED_PTX
#include "ptx/translated.h"
#endif

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
// One block runs at a time, and has these variables for itself: shared_memory.ld.
#define __shared__ static

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

// Blocks that a multiprocessor takes at once.
template <typename... Expected>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Expected...), int,
                                                          size_t shared_bytes) {
  constexpr size_t kAll = 100 << 10;
  *blocks = shared_bytes > kAll ? 0 : shared_bytes > kAll / 2 ? 1 : 2;
  return cudaSuccess;
}

template <typename... Expected, typename... Actual>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Expected...),
                               Actual&&... arguments) {
  std::tuple<Expected...> parameters(std::forward<Actual>(arguments)...);
  const bool known = std::apply(
      [](const auto&... one) { return (emulated_cuda::addresses_device(&one, sizeof(one)) && ...); },
      parameters);
  if (!known) return emulated_cuda::fail(cudaErrorIllegalAddress);
  const bool early = config->numAttrs > 0 && config->attrs->val.programmaticStreamSerializationAllowed != 0;
  emulated_cuda::Shape shape{config->gridDim, config->blockDim, config->dynamicSmemBytes};
  std::function<void()> body = [kernel, parameters] { std::apply(kernel, parameters); };
#ifdef QWEN2VL_EMULATED_PTX
  if (const ptx::Kernel* const other = ptx::in_place_of(reinterpret_cast<const void*>(kernel))) {
    shape.declared_bytes = other->shared_bytes;
    body = [other, bytes = ptx::packed(parameters)]() mutable { other->run(bytes.data()); };
  }
#endif
  return emulated_cuda::launch(shape, config->stream, early, reinterpret_cast<const void*>(kernel),
                               std::move(body));
}
