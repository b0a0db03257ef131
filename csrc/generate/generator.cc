#include "generate/generator.h"

#include <algorithm>
#include <string>
#include <utility>

#include "common/error.h"
#include "generate/batch.h"
#include "generate/prefix.h"

namespace qwen2vl {

Generator::Generator(std::shared_ptr<Decoder> decoder, std::shared_ptr<const TokenText> token_text,
                     const DecoderSettings& settings)
    : decoder_(std::move(decoder)),
      cache_(decoder_->cache()),
      token_text_(std::move(token_text)),
      settings_(settings) {
  if (settings.least_chunk < 1) {
    throw InputError("least_chunk must be at least 1, got " + std::to_string(settings.least_chunk));
  }
  decoder_->check(settings.hidden, settings.vocab);
}

std::vector<Result> Generator::generate(const std::vector<const Request*>& requests,
                                        const TextCallback& on_text, const CancelToken* cancel) {
  const CacheRows::Lease lease(*cache_);
  for (size_t i = 0; i < requests.size(); ++i) check(*requests[i], i == 0);
  return Batch(*this, requests, on_text, cancel).run();
}

int64_t Generator::cached_prefix(const Request& request) const {
  const CacheRows::Lease lease(*cache_);
  const Prompt prompt(request, settings_.visual_tokens);
  return find_prefix(prompt, 0).length;
}

// The row that holds most of the prompt; of several, the preferred one, which saves a copy.
Generator::CachedPrefix Generator::find_prefix(const Prompt& prompt, int64_t preferred_row) const {
  const auto length_in = [&](int64_t row) {
    return reusable_prefix(cache_->identities(row), prompt.identities, prompt.blocks, settings_.least_chunk);
  };
  CachedPrefix best{preferred_row, length_in(preferred_row)};
  for (int64_t row = 0; row < cache_->rows(); ++row) {
    const int64_t length = length_in(row);
    if (length > best.length) best = {row, length};
  }
  return best;
}

// Everything that can be wrong with a request, before anything of its batch runs.
void Generator::check(const Request& request, bool may_use_cache) const {
  const Prompt prompt(request, settings_.visual_tokens);
  if (request.max_new_tokens < 1) {
    throw InputError("max_new_tokens must be at least 1, got " + std::to_string(request.max_new_tokens));
  }
  if (request.prompt_lookup < 0 || request.prompt_lookup > PromptLookup::kLongest) {
    throw InputError("prompt_lookup=" + std::to_string(request.prompt_lookup) +
                     ": give the most tokens that a step may draft, 0 (off) to " +
                     std::to_string(PromptLookup::kLongest));
  }
  if (request.prompt_lookup > decoder_->longest_draft()) {
    throw InputError("prompt_lookup=" + std::to_string(request.prompt_lookup) +
                     " needs a decoder that checks several tokens of a row in one step, and this backend's "
                     "takes one: use the cpu backend, or prompt_lookup=0");
  }
  if (request.max_new_tokens > cache_->capacity() - prompt.tokens) {
    throw PromptTooLongError("prompt of " + std::to_string(prompt.tokens) + " tokens + " +
                             std::to_string(request.max_new_tokens) + " new > capacity " +
                             std::to_string(cache_->capacity()));
  }
  for (const int32_t id : request.token_ids) {
    if (id < 0 || id >= settings_.vocab) {
      throw InputError("token id " + std::to_string(id) + " is outside the vocabulary of " +
                       std::to_string(settings_.vocab));
    }
  }
  request.sampling.validate();
  StopStrings check_stop_strings(request.stop_strings);
  if (request.visuals.size() != prompt.blocks.size()) {
    throw InputError(std::to_string(request.visuals.size()) + " visual embeddings for " +
                     std::to_string(prompt.blocks.size()) + " grids");
  }
  const int64_t cached = may_use_cache ? find_prefix(prompt, 0).length : 0;
  for (size_t i = 0; i < request.visuals.size(); ++i) {
    const VisualEmbeddings& visual = request.visuals[i];
    if (visual.data == nullptr) {
      if (prompt.blocks[i].begin >= cached) {
        throw InputError("visual " + std::to_string(i) +
                         " has no embeddings, and the cache does not hold it");
      }
      continue;
    }
    if (visual.rows != prompt.blocks[i].length || visual.width != settings_.hidden) {
      throw InputError("the embeddings of visual " + std::to_string(i) + " have shape [" +
                       std::to_string(visual.rows) + ", " + std::to_string(visual.width) + "], expected [" +
                       std::to_string(prompt.blocks[i].length) + ", " + std::to_string(settings_.hidden) +
                       "]");
    }
  }
}

}  // namespace qwen2vl
