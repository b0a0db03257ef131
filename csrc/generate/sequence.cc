#include "generate/sequence.h"

#include <algorithm>
#include <utility>

namespace qwen2vl {

Sequence::Sequence(const Request& request, int64_t index, const VisualTokens& visual_tokens,
                   const TokenText& token_text)
    : request(request),
      index(index),
      prompt(request, visual_tokens),
      text_(token_text, request.stop_strings) {
  result.prompt_tokens = prompt.tokens;
  result.token_ids.reserve(request.max_new_tokens);
  if (request.prompt_lookup > 0) {
    lookup_.emplace(request.token_ids, request.max_new_tokens,
                    std::vector<int32_t>{visual_tokens.image_pad, visual_tokens.video_pad});
  }
}

const std::vector<int32_t>& Sequence::draft() {
  static const std::vector<int32_t> kNone;
  return lookup_ ? lookup_->draft(std::min(request.prompt_lookup, wanted_tokens() - 1)) : kNone;
}

void Sequence::accept(SampledToken token, std::string* piece) {
  const int32_t id = token.id;
  result.token_ids.push_back(id);
  if (lookup_) lookup_->push(id);
  if (request.sampling.logprobs >= 0) result.logprobs.push_back(std::move(token));
  const auto& stop_ids = request.stop_ids;
  if (std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end()) {
    finish(FinishReason::kStop, piece);
    return;
  }
  const size_t start = piece->size();
  text_.push(id, piece);
  result.text.append(*piece, start);
  if (text_.stop_string() != nullptr) {
    result.stop_string = *text_.stop_string();
    finish(FinishReason::kStop, piece);
  } else if (static_cast<int64_t>(result.token_ids.size()) == request.max_new_tokens) {
    finish(FinishReason::kLength, piece);
  }
}

void Sequence::cancel(std::string* piece) {
  if (!finished_) finish(FinishReason::kCancelled, piece);
}

void Sequence::finish(FinishReason reason, std::string* piece) {
  const size_t start = piece->size();
  text_.finish(piece);
  result.text.append(*piece, start);
  // What was held back may have completed a stop string only now: an unfinished character became U+FFFD.
  if (text_.stop_string() != nullptr) {
    result.stop_string = *text_.stop_string();
    reason = FinishReason::kStop;
  }
  result.finish_reason = reason;
  if (!result.token_ids.empty()) result.decode_seconds = decode_clock_.seconds();
  finished_ = true;
}

}  // namespace qwen2vl
