// Tensor cores' instructions for a warp, after PTX's description of mma.m16n8k16 and ldmatrix.

#include <cstring>
#include <stdexcept>

#include "block.h"
#include "common/float_type.h"

namespace emulated_cuda {

void load_matrices(uint32_t (&words)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    throw std::logic_error("ldmatrix reads 16 bytes at their place");
  Brought mine{};
  std::memcpy(mine.data(), &row, sizeof row);
  const Brought* const all = exchange(Together::kMatrices, mine);
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    const char* from;
    std::memcpy(&from, all[matrix * 8 + lane() / 4].data(), sizeof from);
    from += lane() % 4 * sizeof(uint32_t);
    accesses::check(accesses::Kind::kRead, from, sizeof(uint32_t), __builtin_return_address(0));
    std::memcpy(&words[matrix], from, sizeof(uint32_t));
  }
  exchange(Together::kMatrices, {});  // nobody writes there before all have read
}

void multiply_add(bool bfloat16, float (&sums)[4], const uint32_t (&first)[4], const uint32_t* second) {
  const qwen2vl::FloatType type = bfloat16 ? qwen2vl::FloatType::kBFloat16 : qwen2vl::FloatType::kFloat16;
  const Brought* const all =
      exchange(Together::kProducts, {first[0], first[1], first[2], first[3], second[0], second[1]});
  const auto a = [&](unsigned row, unsigned k) {
    const unsigned from = row % 8 * 4 + k % 8 / 2, word = row / 8 + k / 8 * 2;
    return qwen2vl::load_float(&all[from][word], type, k % 2);
  };
  const auto b = [&](unsigned k, unsigned column) {
    return qwen2vl::load_float(&all[column * 4 + k % 8 / 2][4 + k / 8], type, k % 2);
  };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane() / 4 + i / 2 * 8, column = lane() % 4 * 2 + i % 2;
    float sum = 0;
    for (unsigned k = 0; k < 16; ++k) sum += a(row, k) * b(k, column);
    sums[i] += sum;
  }
}

}  // namespace emulated_cuda
