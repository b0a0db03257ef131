#include <algorithm>
#include <cmath>

#include "attention/attention.h"
#include "common/scratch.h"

namespace qwen2vl {

namespace {

constexpr int64_t kRows = AttentionKernels::kQueryRows;
constexpr int64_t kPackRows = AttentionKernels::kPackRows;
constexpr int64_t kMostDim = kMostAttentionDim;

int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

// One picture of the call: its keys and values are packed, then its queries attend.
class Picture {
 public:
  Picture(const PictureAttention& call, const AttentionKernels& kernels, int64_t index)
      : call_(call),
        kernels_(kernels),
        qkv_(call.qkv + index * call.patches * token()),
        cos_(call.cos + index * call.patches * (call.dim / 2)),
        sin_(call.sin + index * call.patches * (call.dim / 2)),
        output_(call.output + index * call.patches * call.heads * call.dim) {}

  void pack(int64_t head, int64_t first, char* keys, char* values) const {
    const int64_t count = std::min(kPackRows, call_.patches - first), dim = call_.dim;
    float rotated[kPackRows * kMostDim];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t angle = (first + i) * (dim / 2);
      kernels_.rotate(numbers(1, head, first + i), cos_ + angle, sin_ + angle, dim, rotated + i * dim);
    }
    kernels_.pack_keys(rotated, dim, count, dim, keys + kernels_.key_offset(first, dim));
    kernels_.pack_values(numbers(2, head, first), token(), count, dim,
                         values + kernels_.value_offset(first, dim));
  }

  void attend(int64_t head, int64_t first, const char* keys, const char* values) const {
    const int64_t rows = std::min(kRows, call_.patches - first), dim = call_.dim;
    float rotated[kRows * kMostDim];
    const float* queries[kRows];
    float* outputs[kRows];
    int64_t visible[kRows];
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t angle = (first + i) * (dim / 2);
      kernels_.rotate(numbers(0, head, first + i), cos_ + angle, sin_ + angle, dim, rotated + i * dim);
      queries[i] = rotated + i * dim;
      outputs[i] = output_ + ((first + i) * call_.heads + head) * dim;
      visible[i] = call_.patches;
    }
    const float scale = 1 / std::sqrt(static_cast<float>(dim));
    kernels_.attend({queries, outputs, visible, rows, dim, keys, values, scale},
                    thread_scratch(kernels_.scratch_bytes(dim)));
  }

 private:
  int64_t token() const { return 3 * call_.heads * call_.dim; }
  const float* numbers(int64_t part, int64_t head, int64_t patch) const {
    return qkv_ + patch * token() + (part * call_.heads + head) * call_.dim;
  }

  const PictureAttention& call_;
  const AttentionKernels& kernels_;
  const float *qkv_, *cos_, *sin_;
  float* output_;
};

}  // namespace

void attend(const PictureAttention& call, const AttentionKernels& kernels, const Parallel& parallel) {
  const int64_t packs = parts(call.patches, kPackRows), blocks = parts(call.patches, kRows);
  const size_t key_bytes = kernels.key_offset(packs * kPackRows, call.dim);
  const size_t value_bytes = kernels.value_offset(packs * kPackRows, call.dim);
  // Kept from layer to layer: the system would clear the pages of new memory every time.
  auto* keys = static_cast<char*>(shared_scratch((key_bytes + value_bytes) * call.heads));
  char* values = keys + key_bytes * call.heads;
  for (int64_t index = 0; index < call.pictures; ++index) {
    const Picture picture(call, kernels, index);
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
