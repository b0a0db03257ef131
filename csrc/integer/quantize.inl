// Quantization of activations in terms of one instruction set's vectors: see common/vectors.inl for what a
// file of kernels defines before it includes this one.

#include "common/vectors.inl"

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

// The vector at i of [0, k): a whole one, or in the last part what is left, and zeros.
template <bool Whole>
TARGET inline Vector load_at(const float* from, int64_t i, int64_t k) {
  if (Whole) return load(from + i);
  Vector part = {};
  for (int64_t lane = 0; i + lane < k; ++lane) part[lane] = from[i + lane];
  return part;
}

template <bool Whole>
TARGET inline void store_at(float* to, int64_t i, int64_t k, Vector value) {
  if (Whole) return store(to + i, value);
  for (int64_t lane = 0; i + lane < k; ++lane) to[i + lane] = value[lane];
}

template <bool Whole>
TARGET inline void activate_at(const Activation& activation, int64_t i, int64_t k, float* y) {
  constexpr float kLog2E = 1.44269504088896341f;
  Vector a = load_at<Whole>(activation.x, i, k) * activation.scale;
  if (activation.bias != nullptr) a += load_at<Whole>(activation.bias, i, k);
  if (activation.slope != 0) {
    Vector power = a * (-activation.slope * kLog2E);
    power = power > 126.0f ? Vector{} + 126.0f : power;
    a /= exp2(power) + 1.0f;
  }
  if (activation.other != nullptr) a *= load_at<Whole>(activation.other, i, k) * activation.other_scale;
  if (activation.added != nullptr) a += load_at<Whole>(activation.added, i, k);
  store_at<Whole>(y, i, k, a);
}

TARGET void activate(const Activation& activation, int64_t k, float* y) {
  const Activation own = activation;  // nothing that y could change
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) activate_at<true>(own, i, k, y);
  if (i < k) activate_at<false>(own, i, k, y);
}

template <bool Whole>
TARGET inline void normalize_at(const float* x, const Normalization& normalization, float mean, float factor,
                                int64_t i, int64_t k, float* y) {
  Vector value = (load_at<Whole>(x, i, k) - mean) * factor * load_at<Whole>(normalization.weight, i, k);
  if (normalization.bias != nullptr) value += load_at<Whole>(normalization.bias, i, k);
  store_at<Whole>(y, i, k, value);
}

TARGET void normalize(const float* x, const Normalization& normalization, int64_t k, float* y) {
  const int64_t whole = k / kLanes * kLanes;
  float mean = 0;
  if (normalization.centered) {
    Vector sums = {};
    for (int64_t i = 0; i < whole; i += kLanes) sums += load(x + i);
    mean = sum_of(sums);
    for (int64_t i = whole; i < k; ++i) mean += x[i];
    mean /= static_cast<float>(k);
  }
  Vector squares = {};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vector apart = load(x + i) - mean;
    squares += apart * apart;
  }
  float square = sum_of(squares);
  for (int64_t i = whole; i < k; ++i) square += (x[i] - mean) * (x[i] - mean);
  const float factor = 1 / std::sqrt(square / static_cast<float>(k) + normalization.epsilon);
  const Normalization own = normalization;
  for (int64_t i = 0; i < whole; i += kLanes) normalize_at<true>(x, own, mean, factor, i, k, y);
  if (whole < k) normalize_at<false>(x, own, mean, factor, whole, k, y);
}

// Of numbers that are not negative, the order is that of their bits.
TARGET inline Integers magnitudes(Vector value) { return reinterpret_cast<Integers>(value) & 0x7FFFFFFF; }

template <bool Whole>
TARGET inline void round_at(const float* y, int64_t i, int64_t k, float scale, uint8_t zero_point,
                            uint8_t* codes) {
  const Vector rounded = load_at<Whole>(y, i, k) / scale + kRounder;
  const Bytes bytes = __builtin_convertvector(reinterpret_cast<Integers>(rounded) + zero_point, Bytes);
  std::memcpy(codes + i, &bytes, Whole ? kLanes : k - i);
}

TARGET inline void quantize_block(const float* y, int64_t k, uint8_t zero_point, uint8_t* codes,
                                  float* scale) {
  const int64_t whole = k / kLanes * kLanes;
  Integers peaks = {};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Integers next = magnitudes(load(y + i));
    peaks = next > peaks ? next : peaks;
  }
  if (whole < k) {
    const Integers next = magnitudes(load_at<false>(y, whole, k));
    peaks = next > peaks ? next : peaks;
  }
  const float peak = largest_of(reinterpret_cast<Vector>(peaks));
  *scale = (peak > 1e-10f ? peak : 1e-10f) * (1.0f / 127);
  for (int64_t i = 0; i < whole; i += kLanes) round_at<true>(y, i, k, *scale, zero_point, codes);
  if (whole < k) round_at<false>(y, whole, k, *scale, zero_point, codes);
}

TARGET void quantize(const float* y, int64_t k, int64_t block, uint8_t zero_point, uint8_t* codes,
                     float* scales) {
  for (int64_t first = 0; first < k; first += block, ++scales) {
    quantize_block(y + first, k - first < block ? k - first : block, zero_point, codes + first, scales);
  }
}
