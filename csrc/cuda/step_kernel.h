#pragma once

#include "cuda/stream.h"
#include "device/device.h"

namespace qwen2vl::cuda {

void advance_rows(const StepRows& step, StreamHandle stream);

}  // namespace qwen2vl::cuda
