#include "generate/decoder.h"

#include <algorithm>
#include <string>
#include <utility>

namespace qwen2vl {

Decoder::Decoder(std::shared_ptr<CacheRows> cache, int64_t prefill_chunk)
    : cache_(std::move(cache)), prefill_chunk_(std::min(prefill_chunk, cache_->capacity())) {
  if (prefill_chunk < 1) {
    throw InputError("prefill_chunk must be at least 1, got " + std::to_string(prefill_chunk));
  }
}

}  // namespace qwen2vl
