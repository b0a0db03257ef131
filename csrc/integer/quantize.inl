// Quantization of activations in terms of one instruction set's vectors: see common/vectors.inl for what a
// file of kernels defines before it includes this one.

#include "common/vectors.inl"

typedef uint8_t Bytes __attribute__((vector_size(kLanes)));

// The vector at i of [0, k): a whole one, or what is left and zeros.
TARGET inline Vector load_part(const float* from, int64_t i, int64_t k) {
  if (i + kLanes <= k) return load(from + i);
  Vector part = {};
  for (int64_t lane = 0; i + lane < k; ++lane) part[lane] = from[i + lane];
  return part;
}

TARGET inline void store_part(float* to, int64_t i, int64_t k, Vector value) {
  if (i + kLanes <= k) return store(to + i, value);
  for (int64_t lane = 0; i + lane < k; ++lane) to[i + lane] = value[lane];
}

TARGET void activate(const Activation& activation, int64_t k, float* y) {
  constexpr float kLog2E = 1.44269504088896341f;
  for (int64_t i = 0; i < k; i += kLanes) {
    Vector a = load_part(activation.x, i, k) * activation.scale;
    if (activation.bias != nullptr) a += load_part(activation.bias, i, k);
    if (activation.slope != 0) {
      Vector power = a * (-activation.slope * kLog2E);
      power = power > 126.0f ? Vector{} + 126.0f : power;
      a /= exp2(power) + 1.0f;
    }
    if (activation.other != nullptr) a *= load_part(activation.other, i, k) * activation.other_scale;
    if (activation.added != nullptr) a += load_part(activation.added, i, k);
    store_part(y, i, k, a);
  }
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
  for (int64_t i = 0; i < k; i += kLanes) {
    Vector value = (load_part(x, i, k) - mean) * factor * load_part(normalization.weight, i, k);
    if (normalization.bias != nullptr) value += load_part(normalization.bias, i, k);
    store_part(y, i, k, value);
  }
}

TARGET inline void quantize_block(const float* y, int64_t k, uint8_t zero_point, uint8_t* codes,
                                  float* step) {
  Vector peaks = {};
  for (int64_t i = 0; i < k; i += kLanes) {
    const Vector value = load_part(y, i, k), magnitude = value < 0.0f ? -value : value;
    peaks = magnitude > peaks ? magnitude : peaks;
  }
  const float peak = largest_of(peaks);
  *step = (peak > 1e-10f ? peak : 1e-10f) * (1.0f / 127);
  for (int64_t i = 0; i < k; i += kLanes) {
    const Vector rounded = load_part(y, i, k) / *step + kRounder;
    const Bytes bytes = __builtin_convertvector(reinterpret_cast<Integers>(rounded) + zero_point, Bytes);
    std::memcpy(codes + i, &bytes, i + kLanes <= k ? kLanes : k - i);
  }
}

TARGET void quantize(const float* y, int64_t k, int64_t block, uint8_t zero_point, uint8_t* codes,
                     float* steps) {
  for (int64_t first = 0; first < k; first += block, ++steps) {
    quantize_block(y + first, k - first < block ? k - first : block, zero_point, codes + first, steps);
  }
}
