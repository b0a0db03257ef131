#include <algorithm>
#include <cmath>

#include "attention/attention.h"
#include "attention/score_numbers.h"
#include "common/ceil_divide.h"
#include "common/scratch.h"

namespace qwen2vl {

namespace {

constexpr int64_t kRows = AttentionKernels::kQueryRows;
constexpr int64_t kPackRows = AttentionKernels::kPackRows;
constexpr int64_t kMostDim = kMostAttentionDim;

void subtract(const float* __restrict what, int64_t dim, float* __restrict from) {
  for (int64_t d = 0; d < dim; ++d) from[d] -= what[d];
}

constexpr int64_t kSamples = 16;  // patches that are looked at to choose the numbers of a head's scores

// One picture of the call: its keys and values are packed, then its queries attend.
class Picture {
 public:
  // heads: how each computes its scores; filled by choose().
  Picture(const PictureAttention& call, const AttentionKernels& kernels, int64_t index, ScoreNumbers* heads)
      : call_(call),
        kernels_(kernels),
        heads_(heads),
        qkv_(call.qkv + index * call.patches * token()),
        cos_(call.cos + index * call.patches * (call.dim / 2)),
        sin_(call.sin + index * call.patches * (call.dim / 2)),
        output_(call.output + index * call.patches * call.heads * call.dim) {}

  // Before the head's keys are packed.
  void choose(int64_t head) const {
    const int64_t count = std::min(kSamples, call_.patches), dim = call_.dim;
    float queries[kSamples * kMostDim], keys[kSamples * kMostDim];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t patch = i * call_.patches / count;
      rotate(0, head, patch, queries + i * dim);
      rotate(1, head, patch, keys + i * dim);
    }
    heads_[head] = choose_score_numbers(queries, keys, count, dim);
  }

  void pack(int64_t head, int64_t first, char* keys, char* values) const {
    const int64_t count = std::min(kPackRows, call_.patches - first), dim = call_.dim;
    float rotated[kPackRows * kMostDim];
    const AttentionKernels& own = kernels(head);
    for (int64_t i = 0; i < count; ++i) {
      rotate(1, head, first + i, rotated + i * dim);
      if (own.in_codes()) subtract(heads_[head].centre, dim, rotated + i * dim);
    }
    own.pack_keys(rotated, dim, count, dim, keys + own.key_offset(first, dim));
    own.pack_values(numbers(2, head, first), token(), count, dim, values + own.value_offset(first, dim));
  }

  void attend(int64_t head, int64_t first, const char* keys, const char* values) const {
    const int64_t rows = std::min(kRows, call_.patches - first), dim = call_.dim;
    float rotated[kRows * kMostDim];
    const float* queries[kRows];
    float* outputs[kRows];
    int64_t visible[kRows];
    for (int64_t i = 0; i < rows; ++i) {
      rotate(0, head, first + i, rotated + i * dim);
      queries[i] = rotated + i * dim;
      outputs[i] = output_ + ((first + i) * call_.heads + head) * dim;
      visible[i] = call_.patches;
    }
    const float scale = 1 / std::sqrt(static_cast<float>(dim));
    const AttentionKernels& own = kernels(head);
    own.attend({queries, outputs, visible, rows, dim, keys, values, scale},
               thread_scratch(own.scratch_bytes(dim)));
  }

 private:
  const AttentionKernels& kernels(int64_t head) const {
    return kernels_.in_codes() && !heads_[head].codes ? *kernels_.finer : kernels_;
  }
  int64_t token() const { return 3 * call_.heads * call_.dim; }
  const float* numbers(int64_t part, int64_t head, int64_t patch) const {
    return qkv_ + patch * token() + (part * call_.heads + head) * call_.dim;
  }
  void rotate(int64_t part, int64_t head, int64_t patch, float* to) const {
    const int64_t angle = patch * (call_.dim / 2);
    kernels_.rotate(numbers(part, head, patch), cos_ + angle, sin_ + angle, call_.dim, to);
  }

  const PictureAttention& call_;
  const AttentionKernels& kernels_;
  ScoreNumbers* heads_;
  const float *qkv_, *cos_, *sin_;
  float* output_;
};

}  // namespace

void attend(const PictureAttention& call, const AttentionKernels& kernels, const Parallel& parallel) {
  const int64_t packs = ceil_divide(call.patches, kPackRows), blocks = ceil_divide(call.patches, kRows);
  const AttentionKernels& finest = kernels.in_codes() ? *kernels.finer : kernels;
  const size_t key_bytes = finest.key_offset(packs * kPackRows, call.dim);
  const size_t value_bytes = kernels.value_offset(packs * kPackRows, call.dim);
  // Kept from layer to layer: the system would clear the pages of new memory every time.
  auto* keys =
      static_cast<char*>(shared_scratch((key_bytes + value_bytes + sizeof(ScoreNumbers)) * call.heads));
  char* values = keys + key_bytes * call.heads;
  auto* heads = reinterpret_cast<ScoreNumbers*>(values + value_bytes * call.heads);
  for (int64_t index = 0; index < call.pictures; ++index) {
    const Picture picture(call, kernels, index, heads);
    if (kernels.in_codes()) parallel(call.heads, [&](size_t head) { picture.choose(head); });
    parallel(call.heads * packs, [&](size_t i) {
      const int64_t head = i / packs;
      picture.pack(head, i % packs * kPackRows, keys + head * key_bytes, values + head * value_bytes);
    });
    // Head by head: the threads share a head's keys and values.
    parallel(call.heads * blocks, [&](size_t i) {
      const int64_t head = i / blocks;
      picture.attend(head, i % blocks * kRows, keys + head * key_bytes, values + head * value_bytes);
    });
  }
}

}  // namespace qwen2vl
