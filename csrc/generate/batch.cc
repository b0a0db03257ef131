#include "generate/batch.h"

#include <algorithm>
#include <utility>

#include "generate/prefix.h"

namespace qwen2vl {

Generator::Batch::Batch(Generator& generator, const std::vector<const Request*>& requests,
                        const TextCallback& on_text, const CancelToken* cancel)
    : generator_(generator),
      cache_(*generator.cache_),
      decoder_(*generator.decoder_),
      requests_(requests),
      on_text_(on_text),
      cancel_(cancel),
      results_(requests.size()) {
  active_.reserve(cache_.rows());
  decode_rows_.reserve(cache_.rows());
}

void Generator::Batch::accept(Sequence& sequence, SampledToken token) {
  piece_.clear();
  sequence.accept(std::move(token), &piece_);
  if (on_text_ && on_text_(sequence.index, piece_, sequence.last_token())) {
    piece_.clear();
    sequence.cancel(&piece_);
  }
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
      decode();
    }
    compact();
  }
  return std::move(results_);
}

std::unique_ptr<Sequence> Generator::Batch::start_next(int64_t row) {
  while (next_request_ < requests_.size()) {
    const auto index = static_cast<int64_t>(next_request_++);
    auto sequence = std::make_unique<Sequence>(*requests_[index], index, generator_.settings_.visual_tokens,
                                               *generator_.token_text_);
    decoder_.start(row, *requests_[index]);
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
    end = chunk_end(begin, prompt.tokens);
    decoder_.prefill(row, sequence.request, prompt, begin, end);
    cache_.append(row, &prompt.identities[begin], end - begin);
  }
  try {
    SampledToken token = decoder_.first_token(row);
    // A device's work was only queued before: it is this token that was waited for.
    sequence.result.prefill_seconds = watch.seconds();
    sequence.start_decode_clock();
    accept(sequence, std::move(token));
  } catch (const UnusableLogitsError&) {
    cache_.erase_row(row);  // its keys and values are no better, and must not be reused
    throw;
  }
}

int64_t Generator::Batch::chunk_end(int64_t begin, int64_t tokens) const {
  const int64_t most = decoder_.prefill_chunk();
  if (tokens - begin <= most) return tokens;
  const int64_t end = begin + most, leaves_enough = tokens - generator_.settings_.least_chunk;
  return leaves_enough > begin ? std::min(end, leaves_enough) : end;
}

void Generator::Batch::decode() {
  decode_rows_.clear();
  for (size_t row = 0; row < active_.size(); ++row) {
    const int64_t past_length = cache_.length(static_cast<int64_t>(row));
    decode_rows_.push_back(
        {active_[row]->last_token(), past_length, past_length + active_[row]->prompt.rope_delta});
  }
  decoder_.begin(decode_rows_);
  const auto drafts = [](const auto& sequence) { return sequence->request.prompt_lookup > 0; };
  try {
    std::any_of(active_.begin(), active_.end(), drafts) ? decode_drafts() : decode_steps();
  } catch (const UnusableLogitsError&) {
    decoder_.drain();
    // Of any row, keys and values of this step and of those that were under way may be no better.
    for (size_t row = 0; row < active_.size(); ++row) {
      cache_.erase_row(static_cast<int64_t>(row), decoder_.depth());
    }
    throw;
  } catch (...) {
    decoder_.drain();
    throw;
  }
}

void Generator::Batch::decode_steps() {
  const auto wants_more_than = [&](int64_t tokens) {
    return std::any_of(active_.begin(), active_.end(),
                       [&](const auto& sequence) { return sequence->wanted_tokens() > tokens; });
  };
  int64_t under_way = 0;
  while (goes_on()) {
    while (under_way < decoder_.depth() && (under_way == 0 || wants_more_than(under_way))) {
      decoder_.launch();
      ++under_way;
    }
    decoder_.wait();
    --under_way;
    take_step();
  }
  // What is under way for answers that go on is theirs.
  for (; under_way > 0; --under_way) {
    decoder_.wait();
    take_step();
  }
}

bool Generator::Batch::goes_on() const {
  return !cancelled() && std::none_of(active_.begin(), active_.end(),
                                      [](const auto& sequence) { return sequence->finished(); });
}

void Generator::Batch::decode_drafts() {
  while (goes_on()) {
    if (check_drafts() || !goes_on()) continue;
    decoder_.launch();
    decoder_.wait();
    take_step();
  }
}

bool Generator::Batch::check_drafts() {
  size_t checked = 0;
  for (size_t i = 0; i < active_.size(); ++i) {
    if (active_[i]->finished() || cancelled()) continue;
    const std::vector<int32_t>& draft = active_[i]->draft();
    // A step for one row takes about as long as one for all of them, which would give each row a token.
    if (draft.empty() || draft.size() < active_.size()) continue;
    check_draft(static_cast<int64_t>(i), draft);
    ++checked;
  }
  return checked == active_.size();
}

void Generator::Batch::check_draft(int64_t row, const std::vector<int32_t>& draft) {
  Sequence& sequence = *active_[row];
  decoder_.run_draft(row, draft);
  ++sequence.result.steps;
  sequence.result.drafted_tokens += static_cast<int64_t>(draft.size());
  append_fed(row, sequence.last_token());
  const int64_t length = cache_.length(row);
  for (const int32_t id : draft) append_fed(row, id);
  size_t taken = 0, accepted = 0;
  do {
    accept(sequence, decoder_.token(row));
    if (taken < draft.size() && sequence.last_token() == draft[taken]) ++accepted;
    ++taken;
  } while (accepted == taken && !sequence.finished() && !cancelled());
  sequence.result.accepted_tokens += static_cast<int64_t>(accepted);
  // As after any step, the newest token is not among what the row holds.
  cache_.truncate(row, length + static_cast<int64_t>(taken) - 1);
}

void Generator::Batch::append_fed(int64_t row, int32_t id) {
  const int64_t position = cache_.length(row) + active_[row]->prompt.rope_delta;
  const auto key = static_cast<uint64_t>(id);
  const uint64_t identity =
      position_identity(generator_.settings_.answers_apart ? ~key : key, id, position, position, position);
  cache_.append(row, &identity, 1);
}

void Generator::Batch::take_step() {
  for (size_t i = 0; i < active_.size(); ++i) {
    Sequence& sequence = *active_[i];
    if (sequence.finished()) continue;
    append_fed(static_cast<int64_t>(i), sequence.last_token());
    ++sequence.result.steps;
  }
  for (size_t i = 0; i < active_.size(); ++i) {
    if (active_[i]->finished()) continue;
    const auto row = static_cast<int64_t>(i);
    accept(*active_[i], decoder_.token(row));
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
      decoder_.move(last, row);
      active_[row] = std::move(active_[last]);
    }
    active_.pop_back();
  }
}

void Generator::Batch::cancel(Sequence& sequence) {
  if (sequence.finished()) return;
  piece_.clear();
  sequence.cancel(&piece_);
  if (on_text_ && !piece_.empty()) on_text_(sequence.index, piece_, -1);
}

}  // namespace qwen2vl
