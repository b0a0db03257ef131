#pragma once

// Code that a CPU loop and a CUDA kernel share. QWEN2VL_HOST_DEVICE is for plain functions; QWEN2VL_TEAM for
// templates over a team of threads, which exist for one thread in a C++ file and for a block in a CUDA file;
// QWEN2VL_TEAM_CALL for those that are called from several places and too large to be repeated there; they
// take the team by value, because a reference would put it on the caller's stack.
#ifdef __CUDACC__
#define QWEN2VL_HOST_DEVICE __host__ __device__ inline
#define QWEN2VL_TEAM __device__ inline
#define QWEN2VL_TEAM_CALL __device__ __noinline__
#else
#define QWEN2VL_HOST_DEVICE inline
#define QWEN2VL_TEAM inline
#define QWEN2VL_TEAM_CALL inline
#endif
