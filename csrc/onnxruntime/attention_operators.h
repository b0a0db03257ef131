#pragma once

#include <algorithm>
#include <cstring>

#include "attention/attention.h"
#include "onnxruntime/operator.h"

namespace qwen2vl::ort {

inline void check_head_dim(int64_t dim) {
  if (dim % 2 == 0 && dim > 0 && dim <= kMostAttentionDim) return;
  throw Error("attention over heads of " + std::to_string(dim) +
              " numbers: the kernels take even numbers up to " + std::to_string(kMostAttentionDim));
}

inline Parallel threads_of(const Call& call) {
  return [&call](size_t count, const std::function<void(size_t)>& body) { call.parallel(count, body); };
}

// qkv float32 [N, P, 3 * heads * D], cos and sin [N, P, D / 2] -> [N, P, heads * D]. Attribute codes:
// whether scores may be of 8-bit codes, and the rest of bfloat16 numbers.
class PictureAttentionOperator {
 public:
  static constexpr const char* kName = "PictureAttention";
  static constexpr Port kInputs[] = {{kFloat}, {kFloat}, {kFloat}};
  static constexpr Port kOutputs[] = {{kFloat}};

  PictureAttentionOperator(const Api& api, const KernelInfo* info)
      : kernels_(attention_kernels(integer_attribute(api, info, "codes") ? AttentionNumbers::kCodes
                                                                         : AttentionNumbers::kFloat32)) {}

  void compute(const Call& call) const {
    auto shape = call.shape(0);
    const int64_t dim = 2 * call.shape(1).back();
    check_head_dim(dim);
    if (shape.size() != 3 || shape[2] % (3 * dim) != 0)
      throw Error("queries, keys and values do not match cos");
    shape[2] /= 3;
    attend(PictureAttention{call.data<float>(0), call.data<float>(1), call.data<float>(2),
                            call.output<float>(0, shape), shape[0], shape[1], shape[2] / dim, dim},
           kernels_, threads_of(call));
  }

 private:
  const AttentionKernels& kernels_;
};

// q float32 [B, T, heads * D], k and v [B, T, kv_heads * D], cos and sin [B, T, D / 2], past keys and values
// [B, kv_heads, S, D], past length int64 [B] -> [B, T, heads * D], present keys and values: the past ones,
// updated in place where the caller bound one buffer to both. Attribute bfloat16: whether products may be of
// bfloat16 numbers.
class CachedAttentionOperator {
 public:
  static constexpr const char* kName = "CachedAttention";
  static constexpr Port kInputs[] = {{kFloat}, {kFloat}, {kFloat}, {kFloat},
                                     {kFloat}, {kFloat}, {kFloat}, {kInt64}};
  static constexpr Port kOutputs[] = {{kFloat}, {kFloat}, {kFloat}};

  CachedAttentionOperator(const Api& api, const KernelInfo* info)
      : kernels_(attention_kernels(integer_attribute(api, info, "bfloat16") ? AttentionNumbers::kBfloat16
                                                                            : AttentionNumbers::kFloat32)) {}

  void compute(const Call& call) const {
    const auto shape = call.shape(0), cache = call.shape(5);
    const int64_t rows = shape[0], tokens = shape[1], dim = cache[3];
    check_head_dim(dim);
    const auto* past = call.data<int64_t>(7);
    const int64_t longest = rows == 0 ? 0 : *std::max_element(past, past + rows) + tokens;
    if (cache[0] != rows || longest > cache[2]) {
      throw Error("a cache of " + std::to_string(cache[0]) + " rows and " + std::to_string(cache[2]) +
                  " positions cannot hold " + std::to_string(rows) + " rows and " + std::to_string(longest) +
                  " positions");
    }
    auto* keys = present(call, 5, 1, cache, past);
    auto* values = present(call, 6, 2, cache, past);
    attend(CachedAttention{call.data<float>(0), call.data<float>(1), call.data<float>(2), call.data<float>(3),
                           call.data<float>(4), past, keys, values, call.output<float>(0, shape), rows,
                           tokens, shape[2] / dim, cache[1], dim, cache[2]},
           kernels_, threads_of(call));
  }

 private:
  // A buffer of its own first takes what the cache holds.
  static float* present(const Call& call, size_t input, size_t output, const std::vector<int64_t>& cache,
                        const int64_t* past) {
    const auto* from = call.data<float>(input);
    auto* to = call.output<float>(output, cache);
    const int64_t head = cache[2] * cache[3];
    for (int64_t i = 0; from != to && i < cache[0] * cache[1]; ++i) {
      std::memcpy(to + i * head, from + i * head, past[i / cache[1]] * cache[3] * sizeof(float));
    }
    return to;
  }

  const AttentionKernels& kernels_;
};

}  // namespace qwen2vl::ort
