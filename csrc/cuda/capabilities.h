#pragma once

namespace qwen2vl::cuda {

// What a GPU's launches depend on.
struct Capabilities {
  int multiprocessors;
  bool early_starts;  // of kernels whose predecessors still run: compute capability 9.0 and later
};

// Of the GPU that the calling thread uses; asked for once.
Capabilities capabilities();

}  // namespace qwen2vl::cuda
