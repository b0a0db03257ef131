// float32 vectors of kLanes numbers in the compiler's own terms, for any instruction set. A file of kernels
// defines TARGET, the attribute of every function (the instruction set), and kLanes, and includes this file
// inside an anonymous namespace.

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int32_t Integers __attribute__((vector_size(kLanes * 4)));
typedef float Loose __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));  // anywhere in memory

TARGET inline Vector load(const float* from) { return *reinterpret_cast<const Loose*>(from); }
TARGET inline void store(float* to, Vector value) { *reinterpret_cast<Loose*>(to) = value; }

// Half with half, until one number is left.
template <typename F>
TARGET inline float fold(Vector v, F join) {
  float part[kLanes];
  std::memcpy(part, &v, sizeof(v));
#pragma GCC unroll 4
  for (int width = kLanes / 2; width > 0; width /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < width; ++i) part[i] = join(part[i], part[i + width]);
  }
  return part[0];
}

TARGET inline float sum_of(Vector v) {
  return fold(v, [](float a, float b) { return a + b; });
}

TARGET inline float largest_of(Vector v) {
  return fold(v, [](float a, float b) { return a > b ? a : b; });
}

// 1.5 * 2^23: what is added to it (up to 2^22) is rounded to an integer, half to even, which is then in the
// low bits of the sum.
constexpr float kRounder = 12582912.0f;

// 2^x for x <= 127: x = n + f with |f| <= 1/2, and the Taylor series of 2^f, whose rest is below 1.3e-7.
TARGET inline Vector exp2(Vector x) {
  x = x < -126.0f ? Vector{} - 126.0f : x;
  const Vector shifted = x + kRounder;
  const Vector f = x - (shifted - kRounder);
  Vector p = f * 1.5403530e-4f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  return reinterpret_cast<Vector>(reinterpret_cast<Integers>(p) +
                                  (reinterpret_cast<Integers>(shifted) << 23));
}
