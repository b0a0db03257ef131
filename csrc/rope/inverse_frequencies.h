#pragma once

#include <cstdint>

namespace qwen2vl {

// inv_freq[i] = 1 / theta^(2i / dim) for i in [0, dim / 2): exponent, power and quotient each rounded to
// float32, as in the reference. The power is correctly rounded; torch's misses that by one unit in the last
// place in a few columns (one of the published 64), and which ones depends on its vector width.
void inverse_frequencies(int64_t dim, float theta, float* inv_freq);

}  // namespace qwen2vl
