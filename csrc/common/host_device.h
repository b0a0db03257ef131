#pragma once

// Marks the element-wise code that a CPU loop and a CUDA kernel share: with nvcc it is compiled for both.
#ifdef __CUDACC__
#define QWEN2VL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define QWEN2VL_HOST_DEVICE inline
#endif
