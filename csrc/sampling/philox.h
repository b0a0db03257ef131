#pragma once

#include <array>
#include <cstdint>

#include "common/host_device.h"

namespace qwen2vl {

// Philox4x32-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
// 2011): the draw is a function of (key, counter), so there is no state to carry, and a GPU twin gives the
// same numbers.
QWEN2VL_HOST_DEVICE std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter,
                                                       std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key = {key[0] + 0x9E3779B9u, key[1] + 0xBB67AE85u};
  }
  return counter;
}

// The uniform number in [0, 1) that belongs to step `step` of the answer with this seed: 53 random bits.
QWEN2VL_HOST_DEVICE double uniform_draw(uint64_t seed, uint64_t step) {
  const auto words = philox4x32({static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32), 0, 0},
                                {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = (uint64_t{words[0]} << 32 | words[1]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

}  // namespace qwen2vl
