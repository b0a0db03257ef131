#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"

namespace qwen2vl {

// cos and sin of position * inv_freq, for |angle| < 2^31. The angle is a float32 product (the reference's);
// its cosine and sine are computed to less than one unit in the last place of a double and rounded once. One
// function for the CPU and the GPU, so that both have the same bits; and a reduction that holds for every
// angle of ours, because the one of CUDA's library (Payne and Hanek's) is a call that costs stack.
QWEN2VL_HOST_DEVICE void cos_sin(int64_t position, float inv_freq, float* cos, float* sin) {
  const double angle = static_cast<float>(position) * inv_freq;
  // angle = quarter * pi/2 + (r + tail), by Cody and Waite: pi/2 in parts of 22 bits, whose products with a
  // whole number below 2^31 are exact, and so are the first two differences; `tail` is what rounding takes
  // from the others.
  constexpr double kHalfPi[4] = {0x1.921fbp+0, 0x1.5110bp-22, 0x1.184698p-44, 0x1.3198a2e037073p-69};
  constexpr double kWhole = 0x1.8p52;  // added: rounds to a whole number, whose low bits end up last
  const double shifted = angle * 0x1.45f306dc9c883p-1 + kWhole, quarter = shifted - kWhole;
  const double rest = (angle - quarter * kHalfPi[0]) - quarter * kHalfPi[1];
  const double third = quarter * kHalfPi[2], fine = rest - third;
  const double finer = ((rest - fine) - third) - quarter * kHalfPi[3];
  const double r = fine + finer, tail = (fine - r) + finer;
  // Taylor series on [-pi/4, pi/4]: the first terms left out are below 2^-63 and 2^-58 of the result.
  const double z = r * r;
  double s = 1.0 / 355687428096000.0;
  s = s * z - 1.0 / 1307674368000.0;
  s = s * z + 1.0 / 6227020800.0;
  s = s * z - 1.0 / 39916800.0;
  s = s * z + 1.0 / 362880.0;
  s = s * z - 1.0 / 5040.0;
  s = s * z + 1.0 / 120.0;
  s = s * z - 1.0 / 6.0;
  s = r + (r * z * s + tail);
  double c = 1.0 / 20922789888000.0;
  c = c * z - 1.0 / 87178291200.0;
  c = c * z + 1.0 / 479001600.0;
  c = c * z - 1.0 / 3628800.0;
  c = c * z + 1.0 / 40320.0;
  c = c * z - 1.0 / 720.0;
  c = c * z + 1.0 / 24.0;
  const double half = 0.5 * z, most = 1.0 - half;
  c = most + (((1.0 - most) - half) + (z * z * c - r * tail));
  // cos(a + q pi/2) is cos a, -sin a, -cos a, sin a for q = 0, 1, 2, 3.
  uint64_t turn;
  memcpy(&turn, &shifted, sizeof(turn));
  const double u = turn & 1 ? s : c, v = turn & 1 ? c : s;
  *cos = static_cast<float>((turn + 1) & 2 ? -u : u);
  *sin = static_cast<float>(turn & 2 ? -v : v);
}

}  // namespace qwen2vl
