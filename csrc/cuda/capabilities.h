#pragma once

namespace qwen2vl::cuda {

// What a GPU's launches depend on.
struct Capabilities {
  int multiprocessors;
  bool early_starts;    // of kernels whose predecessors still run: compute capability 9.0 and later
  bool reads_pageable;  // memory of the host, wherever it lies: a copy from there may not be over when its
                        // call is
};

// Of the GPU that the calling thread uses; asked for once.
Capabilities capabilities();

// Before a kernel's first early start. A multiprocessor has one division of its memory in shared memory and
// cache at a time: kernels that ask for the same one can be there together.
void share_multiprocessors(const void* kernel);

}  // namespace qwen2vl::cuda
