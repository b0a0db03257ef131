#include "linear/device_linear.h"

#include "linear/scratch_layout.h"

namespace qwen2vl {

int64_t linear_scratch_bytes(const LinearStep& step) { return LinearScratch(step).bytes; }

}  // namespace qwen2vl
