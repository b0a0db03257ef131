#include "common/parallel.h"
#include "rope/rope_kernel.h"

namespace qwen2vl::cpu {

void rope_rows(const RopeRows& rope) {
  parallel_for(rope.tokens * rope.width, 1 << 14, [&](size_t begin, size_t end) {
    for (size_t index = begin; index < end; ++index) rope_element(rope, static_cast<int64_t>(index));
  });
}

}  // namespace qwen2vl::cpu
