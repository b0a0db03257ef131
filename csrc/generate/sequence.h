#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "generate/prompt.h"
#include "generate/prompt_lookup.h"
#include "generate/request.h"
#include "sampling/sampler.h"
#include "text/text_stream.h"

namespace qwen2vl {

// Seconds since it was made.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// One request while it is being answered: collects its tokens and their text, knows when it is complete.
class Sequence {
 public:
  // Both references must outlive the sequence; index is the request's place in its batch.
  Sequence(const Request& request, int64_t index, const VisualTokens& visual_tokens,
           const TokenText& token_text);

  const Request& request;
  const int64_t index;
  const Prompt prompt;
  Result result;

  // Takes the answer's next token. Appends the text that it completes to `piece`.
  void accept(SampledToken token, std::string* piece);
  // Ends the answer early, unless it has ended. Appends the text that was held back to `piece`.
  void cancel(std::string* piece);

  bool finished() const { return finished_; }
  // Tokens that the answer may still take.
  int64_t wanted_tokens() const {
    return request.max_new_tokens - static_cast<int64_t>(result.token_ids.size());
  }
  int32_t last_token() const { return result.token_ids.back(); }
  // A guess at the tokens that follow, to be checked together: one token less than may still be taken at
  // most, since its check gives one more. Empty when there is none. Valid until the next call.
  const std::vector<int32_t>& draft();
  // The answer's first token starts the clock of decode_seconds.
  void start_decode_clock() { decode_clock_ = Stopwatch(); }

 private:
  void finish(FinishReason reason, std::string* piece);

  TextStream text_;
  std::optional<PromptLookup> lookup_;  // where the request asks for drafts
  Stopwatch decode_clock_;
  bool finished_ = false;
};

}  // namespace qwen2vl
