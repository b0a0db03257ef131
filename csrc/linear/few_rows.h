#pragma once

#include "cuda/stream.h"
#include "linear/device_linear.h"

namespace qwen2vl::cuda {

// A step of at most kFewRows rows, by one pass over the weights for every few of them. Matrices [K, N] go by
// columns, all others by rows of K. False, and nothing is done, where the kernels don't take the step's
// sizes.
bool few_rows_by_columns(const LinearStep& step, StreamHandle stream);
bool few_rows_by_rows(const LinearStep& step, StreamHandle stream);

}  // namespace qwen2vl::cuda
