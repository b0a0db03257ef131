#include "device/transpose.h"

namespace qwen2vl::cpu {

void transpose(const Transpose& turn) {
  const auto run = [&](auto item) {
    for (int64_t i = 0; i < turn.rows * turn.columns; ++i) transpose_item<decltype(item)>(turn, i);
  };
  turn.item == 4 ? run(uint32_t{}) : turn.item == 2 ? run(uint16_t{}) : run(uint8_t{});
}

}  // namespace qwen2vl::cpu
