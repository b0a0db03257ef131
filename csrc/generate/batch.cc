#include "generate/batch.h"

#include <algorithm>

#include "generate/prefix.h"

namespace qwen2vl {

Generator::Batch::Batch(Generator& generator, const std::vector<const Request*>& requests,
                        const TextCallback& on_text, const CancelToken* cancel)
    : generator_(generator),
      cache_(*generator.cache_),
      step_(*generator.step_),
      requests_(requests),
      on_text_(on_text),
      cancel_(cancel),
      results_(requests.size()) {
  active_.reserve(cache_.rows());
}

std::vector<Result> Generator::Batch::run() {
  while (static_cast<int64_t>(active_.size()) < cache_.rows()) {
    auto sequence = start_next(static_cast<int64_t>(active_.size()));
    if (!sequence) break;
    active_.push_back(std::move(sequence));
  }
  while (!active_.empty()) {
    if (cancelled()) {
      for (const auto& sequence : active_) cancel(*sequence);
    } else {
      decode_step();
    }
    compact();
  }
  return std::move(results_);
}

std::unique_ptr<Sequence> Generator::Batch::start_next(int64_t row) {
  while (next_request_ < requests_.size()) {
    const auto index = static_cast<int64_t>(next_request_++);
    auto sequence = std::make_unique<Sequence>(*requests_[index], index, generator_.settings_.visual_tokens,
                                               generator_.settings_.vocab, *generator_.token_text_);
    prefill(*sequence, row);
    if (!sequence->finished()) return sequence;
    keep_result(*sequence);
  }
  return nullptr;
}

void Generator::Batch::prefill(Sequence& sequence, int64_t row) {
  const Stopwatch watch;
  const Prompt& prompt = sequence.prompt;
  const CachedPrefix cached = generator_.find_prefix(prompt, row);
  cache_.copy_row(cached.row, row, cached.length);  // only cuts when the row is its own source
  sequence.result.cached_tokens = cached.length;
  for (int64_t begin = cached.length, end; begin < prompt.tokens; begin = end) {
    if (cancelled()) {
      sequence.result.prefill_seconds = watch.seconds();
      cancel(sequence);
      return;
    }
    end = std::min(begin + generator_.settings_.prefill_chunk, prompt.tokens);
    step_.first_row = row;
    step_.rows = 1;
    step_.tokens = end - begin;
    step_.prompt = true;
    fill_input_embeddings(*generator_.embedding_, sequence.request.token_ids.data(), prompt.blocks,
                          sequence.request.visuals, begin, end, step_.inputs_embeds());
    generator_.rope_.fill(prompt.positions.data(), prompt.tokens, begin, end - begin, step_.cos(),
                          step_.sin());
    step_.past_length()[0] = begin;
    step_.logit_rows()[0] =
        end - begin - 1;  // wanted of the last chunk only, but an engine always scores one
    generator_.executor_->run(step_);
    cache_.append(row, &prompt.identities[begin], end - begin);
  }
  sequence.result.prefill_seconds = watch.seconds();
  sequence.start_decode_clock();
  accept(sequence, row, step_.logits());
}

void Generator::Batch::decode_step() {
  const auto rows = static_cast<int64_t>(active_.size());
  const int64_t width = generator_.rope_.width();
  step_.first_row = 0;
  step_.rows = rows;
  step_.tokens = 1;
  step_.prompt = false;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t past_length = cache_.length(row);
    generator_.step_ids_[row] = active_[row]->last_token();
    generator_.rope_.fill_text(past_length + active_[row]->prompt.rope_delta, step_.cos() + row * width,
                               step_.sin() + row * width);
    step_.past_length()[row] = past_length;
    step_.logit_rows()[row] = 0;
  }
  generator_.embedding_->gather(generator_.step_ids_.data(), rows, step_.inputs_embeds());
  generator_.executor_->run(step_);
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t id = generator_.step_ids_[row];
    const int64_t position = cache_.length(row) + active_[row]->prompt.rope_delta;
    const auto key = static_cast<uint64_t>(id);
    const uint64_t identity =
        position_identity(generator_.settings_.answers_apart ? ~key : key, id, position, position, position);
    cache_.append(row, &identity, 1);
    ++active_[row]->result.steps;
  }
  for (int64_t row = 0; row < rows; ++row) {
    accept(*active_[row], row, step_.logits() + row * generator_.settings_.vocab);
  }
}

void Generator::Batch::compact() {
  // From the last row on down, so that the row which moves into a gap is never a finished one.
  for (auto row = static_cast<int64_t>(active_.size()) - 1; row >= 0; --row) {
    if (!active_[row]->finished()) continue;
    keep_result(*active_[row]);
    active_[row] = start_next(row);
    if (active_[row]) continue;
    const auto last = static_cast<int64_t>(active_.size()) - 1;
    if (row != last) {
      cache_.move_row(last, row);
      active_[row] = std::move(active_[last]);
    }
    active_.pop_back();
  }
}

void Generator::Batch::accept(Sequence& sequence, int64_t row, const float* logits) {
  if (sequence.request.max_new_tokens == 0) {
    sequence.finish_empty();
    return;
  }
  piece_.clear();
  try {
    sequence.accept(logits, &piece_);
  } catch (const UnusableLogitsError&) {
    cache_.erase_row(row);  // its keys and values are no better, and must not be reused
    throw;
  }
  if (on_text_ && on_text_(sequence.index, piece_, sequence.last_token())) {
    piece_.clear();
    sequence.cancel(&piece_);
  }
}

void Generator::Batch::cancel(Sequence& sequence) {
  if (sequence.finished()) return;
  piece_.clear();
  sequence.cancel(&piece_);
  if (on_text_ && !piece_.empty()) on_text_(sequence.index, piece_, -1);
}

}  // namespace qwen2vl
