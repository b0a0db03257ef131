#include "generate/host_decoder.h"

#include <algorithm>
#include <string>
#include <utility>

#include "common/error.h"

namespace qwen2vl {

HostDecoder::HostDecoder(std::shared_ptr<Executor> executor, std::shared_ptr<CacheRows> cache,
                         std::shared_ptr<const EmbeddingTable> embedding, const RopeTable& rope,
                         int64_t prefill_chunk)
    : Decoder(std::move(cache), prefill_chunk),
      executor_(std::move(executor)),
      embedding_(std::move(embedding)),
      rope_(rope),
      step_(std::make_shared<DecoderStep>(DecoderStep::Sizes{this->cache()->rows(), this->prefill_chunk(),
                                                             PromptLookup::kLongest + 1, embedding_->width(),
                                                             rope.width(), embedding_->rows()})),
      samplers_(this->cache()->rows()),
      ids_(std::max(this->cache()->rows(), PromptLookup::kLongest + 1)) {
  rows_.reserve(this->cache()->rows());
  if (this->cache()->head_dim() != 2 * rope.width()) {
    throw InputError("the KV cache's head_dim is " + std::to_string(this->cache()->head_dim()) +
                     ", the decoder's is " + std::to_string(2 * rope.width()));
  }
}

void HostDecoder::check(int64_t hidden, int64_t vocab) const {
  if (embedding_->width() != hidden) {
    throw InputError("the embedding table's width is " + std::to_string(embedding_->width()) +
                     ", the decoder's is " + std::to_string(hidden));
  }
  if (embedding_->rows() != vocab) {
    throw InputError("the embedding table's number of rows is " + std::to_string(embedding_->rows()) +
                     ", the decoder's is " + std::to_string(vocab));
  }
}

void HostDecoder::start(int64_t row, const Request& request) {
  samplers_[row].emplace(request.sampling, embedding_->rows(), request.token_ids.data(),
                         static_cast<int64_t>(request.token_ids.size()));
}

void HostDecoder::prefill(int64_t row, const Request& request, const Prompt& prompt, int64_t begin,
                          int64_t end) {
  step_->first_row = row;
  step_->rows = 1;
  step_->tokens = end - begin;
  step_->logit_row_count = 1;
  step_->prompt = true;
  fill_input_embeddings(*embedding_, request.token_ids.data(), prompt.blocks, request.visuals, begin, end,
                        step_->inputs_embeds());
  rope_.fill(prompt.positions.data(), prompt.tokens, begin, end - begin, step_->cos(), step_->sin());
  step_->past_length()[0] = begin;
  step_->logit_rows()[0] = end - begin - 1;  // wanted of the last chunk only, but an engine always scores one
  executor_->run(*step_);
}

SampledToken HostDecoder::first_token(int64_t row) { return samplers_[row]->sample(step_->logits()); }

void HostDecoder::move(int64_t from, int64_t to) { samplers_[to] = std::move(samplers_[from]); }

void HostDecoder::begin(const std::vector<DecodeRow>& rows) { rows_ = rows; }

void HostDecoder::launch() { run_rows(0, static_cast<int64_t>(rows_.size()), {}); }

void HostDecoder::run_draft(int64_t row, const std::vector<int32_t>& draft) {
  run_rows(row, 1, draft);
  given_ = 0;
}

void HostDecoder::run_rows(int64_t first, int64_t count, const std::vector<int32_t>& draft) {
  const auto tokens = 1 + static_cast<int64_t>(draft.size());
  const int64_t width = rope_.width();
  step_->first_row = first;
  step_->rows = count;
  step_->tokens = step_->logit_row_count = tokens;
  step_->prompt = false;
  for (int64_t b = 0; b < count; ++b) {
    const DecodeRow& row = rows_[first + b];
    step_->past_length()[b] = row.past_length;
    for (int64_t token = 0; token < tokens; ++token) {
      const int64_t at = b * tokens + token;
      ids_[at] = token == 0 ? row.token : draft[token - 1];
      rope_.fill_text(row.position + token, step_->cos() + at * width, step_->sin() + at * width);
      step_->logit_rows()[at] = token;
    }
  }
  embedding_->gather(ids_.data(), count * tokens, step_->inputs_embeds());
  executor_->run(*step_);
}

SampledToken HostDecoder::token(int64_t row) {
  const int64_t at = step_->tokens > 1 ? given_++ : row;  // of the step's logits
  SampledToken token = samplers_[row]->sample(step_->logits() + at * embedding_->rows());
  rows_[row] = {token.id, rows_[row].past_length + 1, rows_[row].position + 1};
  return token;
}

}  // namespace qwen2vl
