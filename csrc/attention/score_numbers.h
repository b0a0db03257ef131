#pragma once

#include <cstdint>

#include "attention/kernels.h"

namespace qwen2vl {

// How a head's scores may be computed.
struct ScoreNumbers {
  // What all keys have in common, about: their mean. It adds the same to each of a query's scores, which no
  // softmax sees, and is taken off keys in codes, of which it would use up most (as in SageAttention,
  // Zhang et al. 2025).
  float centre[kMostAttentionDim];
  // Whether codes of 8 bits are fine enough. They are not where a few numbers of a head are far above the
  // others, since these decide on the scale of all.
  bool codes;
};

// Looks at some of a head's queries and keys, [count, dim] each.
ScoreNumbers choose_score_numbers(const float* queries, const float* keys, int64_t count, int64_t dim);

}  // namespace qwen2vl
