#include "cuda/launch.cuh"
#include "embedding/gather_kernel.h"

namespace qwen2vl::cuda {

namespace {

struct GatherElement {
  EmbeddingGather gather;
  __device__ void operator()(int64_t index) const { gather_element(gather, index); }
};

}  // namespace

void gather_embeddings(const EmbeddingGather& gather, CUstream_st* stream) {
  for_each(gather.count * gather.table.width, GatherElement{gather}, stream, "embedding gather");
}

}  // namespace qwen2vl::cuda
