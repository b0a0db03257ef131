#pragma once

#include <cstddef>

#include "cuda/stream.h"

namespace qwen2vl::cuda {

// Memory for what is between two kernels of one stream: at least so many bytes, the same for all who ask,
// because what runs on a stream runs one after the other. Grows when more is asked for, which a recording
// does not allow: what is recorded ran before.
void* workspace(StreamHandle stream, size_t bytes);

// Frees a stream's, when the stream ends.
void forget_workspace(StreamHandle stream) noexcept;

}  // namespace qwen2vl::cuda
