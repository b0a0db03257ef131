#pragma once

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "device/device.h"
#include "device/device_cache.h"
#include "device/device_engine.h"
#include "embedding/embedding_table.h"
#include "generate/decoder.h"
#include "rope/rope_table.h"

namespace qwen2vl {

// The decoder whose inputs are made, whose engine runs and whose tokens are chosen on a device. In decode, a
// step is [gather, rope] [engine] [sample, advance], each feeding the next through device memory; the host
// reads the chosen ids one step behind. What surrounds the engine is recorded and replayed as one launch
// (with the engine's own step where it can be recorded).
class DeviceDecoder : public Decoder {
 public:
  // The engine's inputs and output on the device; addresses never change, and are multiples of 256 bytes,
  // which TensorRT asks of tensors. B rows of T tokens, B * T at most max(cache rows, prefill_chunk).
  struct Buffers {
    char* inputs_embeds;      // [B, T, hidden], of `type`
    char* cos;                // [B, T, head_dim / 2], of `type`
    char* sin;                // [B, T, head_dim / 2], of `type`
    int64_t* past_length;     // [B]
    int64_t* present_length;  // [B], past_length + T
    int32_t* last_position;   // [B], present_length - 1
    int64_t* logit_rows;      // [B, 1]
    float* logits;            // [B, 1, vocab]
  };

  // `table` is copied into host memory that the device reads row by row. `type`: of embeddings, cos and sin.
  DeviceDecoder(std::shared_ptr<Device> device, std::shared_ptr<DeviceCache> cache,
                const EmbeddingTable& table, const RopeTable& rope, int64_t prefill_chunk, FloatType type);

  // The engine takes the buffers' addresses, so that it comes after them. It is asked here whether it can be
  // recorded: a step that is replayed doesn't call it at all.
  void set_engine(std::shared_ptr<DeviceEngine> engine) {
    engine_ = std::move(engine);
    recordable_ = engine_->recordable();
    recordings_.clear();
  }
  const Buffers& buffers() const { return buffers_; }

  void check(int64_t hidden, int64_t vocab) const override;
  int64_t depth() const override { return 2; }
  void start(int64_t row, const Request& request) override;
  void prefill(int64_t row, const Request& request, const Prompt& prompt, int64_t begin,
               int64_t end) override;
  SampledToken first_token(int64_t row) override;
  void move(int64_t from, int64_t to) override;
  void begin(const std::vector<DecodeRow>& rows) override;
  void launch() override;
  void wait() override;
  SampledToken token(int64_t row) override;
  void drain() noexcept override;

 private:
  // Pointers into memory_, one after the other; returns the bytes up to the last.
  size_t place(char* memory);
  // Makes the engine's inputs for the rows' tokens.
  void embed_rows();
  // Chooses the rows' next tokens, and makes the next step's inputs of them.
  void finish_step(int64_t slot);
  void run_engine();
  // Records a step and runs it. False where the engine could not be recorded: nothing has run then.
  bool record(Recording& recording, const std::function<void()>& step);
  void sample(int64_t row, int64_t rows);
  const float* visual_on_device(const VisualEmbeddings& visual);
  SampledToken take(const SampledRow& sampled, int64_t row);

  std::shared_ptr<Device> device_;
  std::shared_ptr<DeviceEngine> engine_;
  bool recordable_ = false;
  FloatType type_;
  int64_t rows_;
  int64_t row_stride_;  // between numbers of all rows: 256 bytes, or a multiple, for either width
  int64_t rope_width_;

  SharedBlock table_memory_;
  TableView table_;
  SharedBlock results_;  // [2 slots, rows] SampledRow, read by the host
  DeviceBlock memory_;

  Buffers buffers_{};
  float* inv_freq_ = nullptr;              // [head_dim / 2]
  uint8_t* axis_ = nullptr;                // [head_dim / 2]
  int64_t* row_numbers_ = nullptr;         // [4, row_stride]: past and present length, position, logit row
  int32_t* row_words_ = nullptr;           // [2, row_stride]: last position, id
  int32_t* chunk_ids_ = nullptr;           // [prefill_chunk]
  int64_t* chunk_positions_ = nullptr;     // [3, prefill_chunk]
  const float** chunk_visuals_ = nullptr;  // [prefill_chunk]
  SamplerState* states_ = nullptr;         // [rows]
  int32_t* answer_counts_ = nullptr;       // [rows, vocab]
  char* sample_scratch_ = nullptr;
  SampledRow* sampled_ = nullptr;  // [rows], what the newest step chose

  std::vector<uint64_t> chosen_;                 // [rows], tokens chosen of each row's answer
  std::vector<int32_t> logprobs_;                // [rows], as SamplingOptions::logprobs
  std::map<const float*, DeviceBlock> visuals_;  // of the prompt being filled, by the host's address
  // What a step records, by 2 * rows + slot. They hold this decoder's addresses, so that another decoder on
  // the same device has its own.
  std::map<int64_t, std::unique_ptr<Recording>> recordings_;
  int64_t decode_rows_ = 0;
  int64_t launched_ = 0, waited_ = 0;  // steps since begin()
};

}  // namespace qwen2vl
