#include "generate/host_decoder.h"

#include <string>
#include <utility>

#include "common/error.h"

namespace qwen2vl {

HostDecoder::HostDecoder(std::shared_ptr<Executor> executor, std::shared_ptr<const EmbeddingTable> embedding,
                         const RopeTable& rope, int64_t rows, int64_t prefill_chunk)
    : executor_(std::move(executor)),
      embedding_(std::move(embedding)),
      rope_(rope),
      step_(std::make_shared<DecoderStep>(
          DecoderStep::Sizes{rows, prefill_chunk, embedding_->width(), rope.width(), embedding_->rows()})),
      samplers_(rows),
      ids_(rows) {
  rows_.reserve(rows);
}

void HostDecoder::check(int64_t hidden, int64_t vocab, int64_t, int64_t) const {
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

void HostDecoder::launch() {
  const auto rows = static_cast<int64_t>(rows_.size());
  const int64_t width = rope_.width();
  step_->first_row = 0;
  step_->rows = rows;
  step_->tokens = 1;
  step_->prompt = false;
  for (int64_t row = 0; row < rows; ++row) {
    ids_[row] = rows_[row].token;
    rope_.fill_text(rows_[row].position, step_->cos() + row * width, step_->sin() + row * width);
    step_->past_length()[row] = rows_[row].past_length;
    step_->logit_rows()[row] = 0;
  }
  embedding_->gather(ids_.data(), rows, step_->inputs_embeds());
  executor_->run(*step_);
}

SampledToken HostDecoder::token(int64_t row) {
  SampledToken token = samplers_[row]->sample(step_->logits() + row * embedding_->rows());
  rows_[row] = {token.id, rows_[row].past_length + 1, rows_[row].position + 1};
  return token;
}

}  // namespace qwen2vl
