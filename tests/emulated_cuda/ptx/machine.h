#pragma once

// What PTX's instructions do, where C++ has no operator for it: to_cpp.py's half that runs.

#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "common/float_type.h"

namespace ptx {

using qwen2vl::FloatType;

[[noreturn]] inline void refuse(const char* what) { throw std::logic_error(what); }

// --- registers: bits, and values of an instruction's type ------------------------------------------------

// Of a register's bits a value, or the other way round. An integer that is narrower than its register is
// extended by its own sign.
template <typename To, typename From>
inline __attribute__((always_inline)) To as(From from) {
  if constexpr (std::is_floating_point_v<To> != std::is_floating_point_v<From>) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
  } else {
    return static_cast<To>(from);
  }
}

// --- integers --------------------------------------------------------------------------------------------

template <typename T>
T shl(T x, uint32_t by) {
  return by >= sizeof(T) * 8 ? 0 : static_cast<T>(x << by);
}
template <typename T>
T shr(T x, uint32_t by) {
  constexpr uint32_t kLast = sizeof(T) * 8 - 1;
  if (by > kLast && std::is_unsigned_v<T>) return 0;
  return static_cast<T>(x >> std::min(by, kLast));
}
template <typename T>
T bfi(T field, T x, uint32_t place, uint32_t length) {
  const T mask = static_cast<T>((length >= sizeof(T) * 8 ? T{0} : T{1} << length) - 1) << place;
  return (x & ~mask) | (field << place & mask);
}
template <typename T>
T high_product(T x, T y) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>(Wide{x} * Wide{y} >> sizeof(T) * 8);
}
template <typename T>
T quotient(T x, T y) {
  if (y == 0) refuse("a division by zero");
  return static_cast<T>(x / y);
}
template <typename T>
T remainder(T x, T y) {
  if (y == 0) refuse("a division by zero");
  return static_cast<T>(x % y);
}
inline uint32_t prmt(uint32_t x, uint32_t y, uint32_t choice) {
  if ((choice & 0x8888) != 0) refuse("prmt that repeats signs is not emulated");
  return __byte_perm(x, y, choice);
}
inline uint32_t lop3(uint32_t x, uint32_t y, uint32_t z, uint32_t table) {
  uint32_t result = 0;
  for (int i = 0; i < 32; ++i) {
    const uint32_t row = (x >> i & 1) << 2 | (y >> i & 1) << 1 | (z >> i & 1);
    result |= (table >> row & 1) << i;
  }
  return result;
}

// --- floating-point numbers ------------------------------------------------------------------------------

template <typename T>
bool unordered(T x, T y) {
  return std::isnan(x) || std::isnan(y);
}
template <typename T, typename Float>
T integer(Float x) {
  using Limits = std::numeric_limits<T>;
  if (std::isnan(x)) return 0;
  if (x <= static_cast<Float>(Limits::min())) return Limits::min();
  if (x >= static_cast<Float>(Limits::max())) return Limits::max();
  return static_cast<T>(x);
}
inline float saturated(float x) { return x > 0 ? std::min(x, 1.0f) : 0.0f; }
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float exp2_approximately(float x) { return flushed(std::exp2(flushed(x))); }
// To 20 bits; what csrc computes with it is refined.
inline double reciprocal_approximately(double x) {
  return as<double>(as<uint64_t>(1 / x) & 0xFFFFFFFF00000000u);
}
// Rounded towards minus infinity.
float fused_down(float x, float y, float z);

template <FloatType type>
uint32_t rounded_pair(float low, float high) {
  uint16_t halves[2];
  qwen2vl::store_float(halves, type, 0, low);
  qwen2vl::store_float(halves, type, 1, high);
  return uint32_t{halves[1]} << 16 | halves[0];
}
// Sums and products of 16-bit numbers fit into float32, or are rounded twice without a difference.
template <FloatType type>
uint32_t fused_pairs(uint32_t x, uint32_t y, uint32_t z) {
  const auto one = [&](int i) {
    using qwen2vl::load_float;
    return load_float(&x, type, i) * load_float(&y, type, i) + load_float(&z, type, i);
  };
  return rounded_pair<type>(one(0), one(1));
}
template <FloatType type>
uint32_t added_pairs(uint32_t x, uint32_t y) {
  return fused_pairs<type>(x, rounded_pair<type>(1, 1), y);
}

// --- memory ----------------------------------------------------------------------------------------------

// Addresses in shared memory count from where the block's begins.
inline char* shared(uint64_t place) {
  if (place > emulated_cuda::shared_memory_bytes()) refuse("an address that is not in shared memory");
  return emulated_cuda::shared_memory() + place;
}
inline uint64_t from_shared(uint64_t place) { return reinterpret_cast<uint64_t>(shared(place)); }
inline uint64_t to_shared(uint64_t address) {
  const uint64_t place = address - reinterpret_cast<uint64_t>(shared(0));
  shared(place);
  return place;
}

template <typename T, int count>
struct alignas(sizeof(T) * count) Vector {
  T each[count];
};
template <typename T>
inline __attribute__((always_inline)) T load(const char* address) {
  if (reinterpret_cast<uintptr_t>(address) % alignof(T) != 0) refuse("a load that is not aligned");
  return *reinterpret_cast<const T*>(address);
}
template <typename T>
inline __attribute__((always_inline)) void store(char* address, T value) {
  if (reinterpret_cast<uintptr_t>(address) % alignof(T) != 0) refuse("a store that is not aligned");
  *reinterpret_cast<T*>(address) = value;
}
// Parameters are nobody's memory: no access is reported.
template <typename T>
__attribute__((no_sanitize("thread"), noinline)) T load_parameter(const char* address) {
  T value;
  std::memcpy(&value, address, sizeof value);
  return value;
}
template <typename T>
__attribute__((no_sanitize("thread"), noinline)) void store_parameter(char* address, T value) {
  std::memcpy(address, &value, sizeof value);
}

// --- warps -----------------------------------------------------------------------------------------------

inline void require_whole_warp(uint32_t mask, uint32_t clamp = 31) {
  if (mask != 0xFFFFFFFFu || clamp != 31) refuse("only whole warps are emulated");
}
inline uint32_t shuffled_bfly(uint32_t mine, uint32_t distance, uint32_t clamp, uint32_t mask) {
  require_whole_warp(mask, clamp);
  return __shfl_xor_sync(mask, mine, static_cast<int>(distance));
}
inline uint32_t shuffled_idx(uint32_t mine, uint32_t lane, uint32_t clamp, uint32_t mask) {
  require_whole_warp(mask, clamp);
  return as<uint32_t>(__shfl_sync(mask, as<float>(mine), static_cast<int>(lane % 32)));
}
inline void warp_barrier(uint32_t mask) {
  require_whole_warp(mask);
  __syncwarp();
}

}  // namespace ptx
