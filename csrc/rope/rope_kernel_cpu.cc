#include "common/parallel.h"
#include "rope/rope_kernel.h"

namespace qwen2vl::cpu {

void rope_rows(const RopeRows& rope) {
  parallel_for(rope.tokens, 256, [&](size_t begin, size_t end) {
    for (size_t token = begin; token < end; ++token) {
      for (int64_t column = 0; column < rope.width; ++column) {
        rope_element(rope, static_cast<int64_t>(token), column);
      }
    }
  });
}

}  // namespace qwen2vl::cpu
