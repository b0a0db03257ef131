#pragma once

#include <cstdint>
#include <memory>

#include "common/aligned_buffer.h"

namespace qwen2vl {

// One run of the decoder on B rows of T tokens, the inputs filled in by the generator, the logits by the
// executor. The buffers are allocated once; their addresses never change, so that an engine can bind them
// once and for all. Row b of a step is row first_row + b of the KV cache. B and T change from step to step: a
// prefill chunk has B = 1, a decode step T = 1, or B = 1 and T = K when it checks a draft.
class DecoderStep : public std::enable_shared_from_this<DecoderStep> {
 public:
  struct Sizes {
    int64_t max_rows;    // of a decode step
    int64_t max_tokens;  // of a prefill chunk
    int64_t max_scored;  // tokens of one row whose logits are wanted
    int64_t hidden, rope_width, vocab;
  };

  explicit DecoderStep(const Sizes& sizes);

  const Sizes sizes;
  int64_t first_row = 0;
  int64_t rows = 0;             // B
  int64_t tokens = 0;           // T
  int64_t logit_row_count = 1;  // K
  // Whether the tokens are a prompt's or an answer's own. It is not T: a prompt's last chunk may be one
  // token.
  bool prompt = true;

  float* inputs_embeds() const { return inputs_embeds_.data(); }  // [B, T, hidden]
  float* cos() const { return cos_.data(); }  // [B, T, rope_width], rope_width = head_dim / 2
  float* sin() const { return sin_.data(); }  // [B, T, rope_width]
  int64_t* past_length() const { return past_length_.data(); }  // [B], positions that each row already holds
  int64_t* logit_rows() const { return logit_rows_.data(); }    // [B, K], which of the T tokens to score
  float* logits() const { return logits_.data(); }              // [B, K, vocab], for the executor to write

 private:
  AlignedBuffer<float> inputs_embeds_, cos_, sin_;
  AlignedBuffer<int64_t> past_length_, logit_rows_;
  AlignedBuffer<float> logits_;
};

// The inference engine as the generation loop sees it. It knows nothing of prompts, phases or pictures.
class Executor {
 public:
  virtual ~Executor() = default;

  // Runs the decoder: for every row b, writes keys and values of its T tokens to the cache's row first_row +
  // b at positions [past_length[b], past_length[b] + T), lets every token attend to all positions up to its
  // own, and writes the logits of the tokens named by logit_rows. Called from one thread at a time. May
  // throw; the cache then keeps what earlier steps wrote.
  virtual void run(DecoderStep& step) = 0;
};

}  // namespace qwen2vl
