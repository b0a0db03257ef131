#pragma once

#ifdef __x86_64__

// GCC 12 warns of its own "undefined" vectors (its bug 105593), wherever a file uses them.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace qwen2vl {

// Chooses the first `count` of a vector's 16 numbers: none below 1, all from 16 on.
inline __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(count, 0, 16)) - 1);
}

}  // namespace qwen2vl

#endif
