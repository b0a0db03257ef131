#include <algorithm>
#include <cmath>
#include <cstring>

#include "attention/attention.h"
#include "common/ceil_divide.h"
#include "common/scratch.h"

namespace qwen2vl {

namespace {

constexpr int64_t kRows = AttentionKernels::kQueryRows;
constexpr int64_t kPartRows = AttentionKernels::kPartRows;
constexpr int64_t kPackRows = AttentionKernels::kPackRows;
constexpr int64_t kMostDim = kMostAttentionDim;

// Keys of one part of a cache that a few tokens attend to. Fixed, so that the number of threads changes no
// result.
constexpr int64_t kPartKeys = 1024;

class Step {
 public:
  Step(const CachedAttention& call, const AttentionKernels& kernels)
      : call_(call), kernels_(kernels), group_(call.heads / call.kv_heads) {
    for (int64_t row = 0; row < call.rows; ++row) longest_ = std::max(longest_, call.past[row] + call.tokens);
  }

  void run(const Parallel& parallel) const {
    append(parallel);
    if (kernels_.attend_part != nullptr && call_.tokens <= kFewAttendingTokens && call_.dim % 16 == 0) {
      few(parallel);
    } else {
      many(parallel);
    }
  }

 private:
  // A token's query of one head, rotated.
  void query(int64_t row, int64_t token, int64_t head, float* to) const {
    const int64_t index = row * call_.tokens + token, angle = index * (call_.dim / 2);
    kernels_.rotate(call_.queries + (index * call_.heads + head) * call_.dim, call_.cos + angle,
                    call_.sin + angle, call_.dim, to);
  }
  float* output(int64_t row, int64_t token, int64_t head) const {
    return call_.output + ((row * call_.tokens + token) * call_.heads + head) * call_.dim;
  }
  int64_t cached(int64_t row, int64_t kv_head) const {
    return (row * call_.kv_heads + kv_head) * call_.capacity * call_.dim;
  }
  float scale() const { return 1 / std::sqrt(static_cast<float>(call_.dim)); }

  // Appends the new keys, rotated, and values to the cache.
  void append(const Parallel& parallel) const {
    constexpr int64_t kTokens = 64;
    const int64_t blocks = ceil_divide(call_.tokens, kTokens);
    const auto body = [&](size_t i) {
      const int64_t row = i / blocks, first = i % blocks * kTokens;
      for (int64_t token = first; token < std::min(first + kTokens, call_.tokens); ++token) {
        const int64_t index = row * call_.tokens + token, angle = index * (call_.dim / 2);
        for (int64_t head = 0; head < call_.kv_heads; ++head) {
          const int64_t from = (index * call_.kv_heads + head) * call_.dim;
          const int64_t to = cached(row, head) + (call_.past[row] + token) * call_.dim;
          kernels_.rotate(call_.keys + from, call_.cos + angle, call_.sin + angle, call_.dim,
                          call_.cached_keys + to);
          std::memcpy(call_.cached_values + to, call_.values + from, call_.dim * sizeof(float));
        }
      }
    };
    if (call_.rows * blocks == 1) return body(0);  // not worth waking threads
    parallel(call_.rows * blocks, body);
  }

  // The queries that share a head's keys and values, kPartRows at a time, over parts of the cache; then the
  // parts of each query are put together.
  void few(const Parallel& parallel) const {
    const int64_t dim = call_.dim, queries = group_ * call_.tokens;
    const int64_t slices = ceil_divide(longest_, kPartKeys), groups = ceil_divide(queries, kPartRows);
    const int64_t tasks = call_.rows * call_.kv_heads * groups * slices;
    const int64_t result = kPartRows * (dim + 2);  // sums, weights, peaks
    auto* results = static_cast<float*>(shared_scratch(tasks * result * sizeof(float)));
    parallel(tasks, [&](size_t task) {
      const int64_t slice = task % slices, group = task / slices % groups;
      const int64_t kv_head = task / slices / groups % call_.kv_heads;
      const int64_t row = task / slices / groups / call_.kv_heads;
      const int64_t rows = std::min(kPartRows, queries - group * kPartRows);
      alignas(64) float rotated[kPartRows * kMostDim];
      const float* pointers[kPartRows];
      int64_t visible[kPartRows];
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t token = (group * kPartRows + r) / group_,
                      head = kv_head * group_ + (group * kPartRows + r) % group_;
        query(row, token, head, rotated + r * dim);
        pointers[r] = rotated + r * dim;
        visible[r] = call_.past[row] + token + 1;
      }
      float* sums = results + task * result;
      const int64_t begin = slice * kPartKeys;
      const int64_t end = std::max(begin, std::min(begin + kPartKeys, call_.past[row] + call_.tokens));
      kernels_.attend_part({pointers, visible, rows, dim, call_.cached_keys + cached(row, kv_head),
                            call_.cached_values + cached(row, kv_head), begin, end, scale(), sums,
                            sums + kPartRows * dim, sums + kPartRows * (dim + 1)},
                           thread_scratch(kernels_.scratch_bytes(dim)));
    });
    for (int64_t row = 0; row < call_.rows; ++row) {
      for (int64_t head = 0; head < call_.heads; ++head) {
        for (int64_t token = 0; token < call_.tokens; ++token) {
          const int64_t index = token * group_ + head % group_, group = index / kPartRows;
          const int64_t task = ((row * call_.kv_heads + head / group_) * groups + group) * slices;
          join(results + task * result, result, slices, index % kPartRows, output(row, token, head));
        }
      }
    }
  }

  void join(const float* results, int64_t stride, int64_t slices, int64_t r, float* output) const {
    const int64_t dim = call_.dim;
    const auto weights = [&](int64_t slice) { return results[slice * stride + kPartRows * dim + r]; };
    const auto peak = [&](int64_t slice) { return results[slice * stride + kPartRows * (dim + 1) + r]; };
    float largest = peak(0), total = 0;
    for (int64_t slice = 1; slice < slices; ++slice) largest = std::max(largest, peak(slice));
    std::fill(output, output + dim, 0.0f);
    for (int64_t slice = 0; slice < slices; ++slice) {
      const float share = std::exp2(peak(slice) - largest);
      total += weights(slice) * share;
      for (int64_t d = 0; d < dim; ++d) output[d] += results[slice * stride + r * dim + d] * share;
    }
    for (int64_t d = 0; d < dim; ++d) output[d] /= total;
  }

  // Row by row: what the cache holds is packed, then blocks of queries attend to it.
  void many(const Parallel& parallel) const {
    const int64_t dim = call_.dim, packs = ceil_divide(call_.capacity, kPackRows),
                  queries = group_ * call_.tokens;
    const int64_t blocks = ceil_divide(queries, kRows);
    const size_t key_bytes = kernels_.key_offset(packs * kPackRows, dim);
    const size_t value_bytes = kernels_.value_offset(packs * kPackRows, dim);
    // As large as the cache's rows, and kept: blocks that grow with the past would leave gaps in the heap.
    char* const keys = static_cast<char*>(shared_scratch((key_bytes + value_bytes) * call_.kv_heads));
    char* const values = keys + key_bytes * call_.kv_heads;
    for (int64_t row = 0; row < call_.rows; ++row) {
      const int64_t length = call_.past[row] + call_.tokens, row_packs = ceil_divide(length, kPackRows);
      parallel(call_.kv_heads * row_packs, [&](size_t i) {
        const int64_t head = i / row_packs, first = i % row_packs * kPackRows;
        const int64_t count = std::min(kPackRows, length - first), from = cached(row, head) + first * dim;
        kernels_.pack_keys(call_.cached_keys + from, dim, count, dim,
                           keys + head * key_bytes + kernels_.key_offset(first, dim));
        kernels_.pack_values(call_.cached_values + from, dim, count, dim,
                             values + head * value_bytes + kernels_.value_offset(first, dim));
      });
      parallel(call_.kv_heads * blocks, [&](size_t i) {
        // The last queries see the most: they come first, so that no thread is left with a long one at the
        // end.
        const int64_t kv_head = i % call_.kv_heads, first = (blocks - 1 - i / call_.kv_heads) * kRows;
        const int64_t rows = std::min(kRows, queries - first);
        alignas(64) float rotated[kRows * kMostDim];
        const float* pointers[kRows];
        float* outputs[kRows];
        int64_t visible[kRows];
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t token = (first + r) / group_, head = kv_head * group_ + (first + r) % group_;
          query(row, token, head, rotated + r * dim);
          pointers[r] = rotated + r * dim;
          outputs[r] = output(row, token, head);
          visible[r] = call_.past[row] + token + 1;
        }
        kernels_.attend({pointers, outputs, visible, rows, dim, keys + kv_head * key_bytes,
                         values + kv_head * value_bytes, scale()},
                        thread_scratch(kernels_.scratch_bytes(dim)));
      });
    }
  }

  const CachedAttention& call_;
  const AttentionKernels& kernels_;
  const int64_t group_;
  int64_t longest_ = 0;
};

}  // namespace

void attend(const CachedAttention& call, const AttentionKernels& kernels, const Parallel& parallel) {
  Step(call, kernels).run(parallel);
}

}  // namespace qwen2vl
