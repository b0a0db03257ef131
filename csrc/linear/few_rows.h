#pragma once

#include "cuda/stream.h"
#include "linear/device_linear.h"

namespace qwen2vl::cuda {

// A step of at most kFewLinearRows rows, by one pass over the weights for every few of them. False, and
// nothing is done, where the kernel doesn't take the step's sizes.
bool few_rows(const LinearStep& step, StreamHandle stream);

}  // namespace qwen2vl::cuda
