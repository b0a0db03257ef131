#include "cuda/launch.cuh"
#include "device/transpose.h"

namespace qwen2vl::cuda {

namespace {

template <typename Item>
struct TransposeItem {
  Transpose turn;
  __device__ void operator()(int64_t index) const { transpose_item<Item>(turn, index); }
};

}  // namespace

void transpose(const Transpose& turn, CUstream_st* stream) {
  const auto run = [&](auto item) {
    for_each(turn.rows * turn.columns, TransposeItem<decltype(item)>{turn}, stream, "turning a matrix");
  };
  turn.item == 4 ? run(uint32_t{}) : turn.item == 2 ? run(uint16_t{}) : run(uint8_t{});
}

}  // namespace qwen2vl::cuda
