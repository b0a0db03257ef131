#pragma once

#include <cstddef>
#include <cstdint>

namespace qwen2vl::cuda {

// What a GPU's launches depend on.
struct Capabilities {
  int multiprocessors;
  int64_t shared_bytes;  // of shared memory that a block can have
  bool early_starts;     // of kernels whose predecessors still run: compute capability 9.0 and later
  bool reads_pageable;   // memory of the host, wherever it lies: a copy from there may not be over when its
                         // call is
};

// Of the GPU that the calling thread uses; asked for once.
Capabilities capabilities();

// Before a kernel's first early start. A multiprocessor has one division of its memory in shared memory and
// cache at a time: kernels that ask for the same one can be there together.
void share_multiprocessors(const void* kernel);

// Before a launch of a kernel with so much shared memory that its launch decides on: what is more than usual
// has to be asked for.
void allow_shared_memory(const void* kernel, size_t bytes);

}  // namespace qwen2vl::cuda
