#include "common/parallel.h"
#include "embedding/gather_kernel.h"

namespace qwen2vl::cpu {

void gather_embeddings(const EmbeddingGather& gather) {
  parallel_for(gather.count * gather.table.width, 1 << 18, [&](size_t begin, size_t end) {
    for (size_t index = begin; index < end; ++index) gather_element(gather, static_cast<int64_t>(index));
  });
}

}  // namespace qwen2vl::cpu
