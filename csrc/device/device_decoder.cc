#include "device/device_decoder.h"

#include <algorithm>
#include <string>

#include "common/error.h"

namespace qwen2vl {

namespace {

// Cuts pieces off a block of memory, each on a 256-byte border.
class Carver {
 public:
  explicit Carver(char* memory) : memory_(memory) {}
  template <typename T>
  void take(T** pointer, int64_t count, int64_t size = sizeof(T)) {
    *pointer = reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * size + 255) / 256 * 256;
  }
  int64_t used() const { return used_; }

 private:
  char* memory_;
  int64_t used_ = 0;
};

}  // namespace

DeviceDecoder::DeviceDecoder(std::shared_ptr<Device> device, std::shared_ptr<DeviceCache> cache,
                             const EmbeddingTable& table, const RopeTable& rope, int64_t prefill_chunk,
                             FloatType type)
    : Decoder(std::move(cache), prefill_chunk),
      device_(std::move(device)),
      type_(type),
      rows_(this->cache()->rows()),
      row_stride_((rows_ + 63) / 64 * 64),
      rope_width_(rope.width()),
      chosen_(rows_),
      logprobs_(rows_, -1) {
  table_ = {nullptr,     nullptr, nullptr, table.rows(), table.width(), EmbeddingTable::block_width(),
            table.type()};
  const int64_t element_bytes = table.rows() * table.width() * element_size(table.type());
  const int64_t blocks = table.blocks();
  char *elements, *scales, *zero_points;
  const auto place_table = [&](char* memory) {
    Carver carver(memory);
    carver.take(&elements, element_bytes);
    carver.take(&scales, blocks * 4);
    carver.take(&zero_points, blocks);
    return carver.used();
  };
  table_memory_ = SharedBlock(device_, place_table(nullptr));
  place_table(table_memory_.as<char>());
  table.copy(elements, scales, zero_points);
  place_table(table_memory_.on_device<char>());
  table_.data = elements;
  table_.scale = reinterpret_cast<const float*>(scales);
  table_.zero_point = reinterpret_cast<const uint8_t*>(zero_points);

  results_ = SharedBlock(device_, 2 * rows_ * sizeof(SampledRow));
  memory_ = DeviceBlock(device_, place(nullptr));
  place(memory_.as<char>());
  device_->upload(inv_freq_, rope.inv_freq().data(), rope_width_ * sizeof(float));
  device_->upload(axis_, rope.axes().data(), rope_width_);
  device_->synchronize();
}

size_t DeviceDecoder::place(char* memory) {
  Carver carver(memory);
  const int64_t tokens = std::max(rows_, prefill_chunk()), size = float_size(type_);
  carver.take(&buffers_.inputs_embeds, tokens * table_.width, size);
  carver.take(&buffers_.cos, tokens * rope_width_, size);
  carver.take(&buffers_.sin, tokens * rope_width_, size);
  carver.take(&buffers_.logits, rows_ * table_.rows);
  carver.take(&row_numbers_, 4 * row_stride_);
  carver.take(&row_words_, 2 * row_stride_);
  carver.take(&inv_freq_, rope_width_);
  carver.take(&axis_, rope_width_);
  carver.take(&chunk_ids_, prefill_chunk());
  carver.take(&chunk_positions_, 3 * prefill_chunk());
  carver.take(&chunk_visuals_, prefill_chunk());
  carver.take(&states_, rows_);
  carver.take(&answer_counts_, rows_ * table_.rows);
  carver.take(&sampled_, rows_);
  carver.take(&sample_scratch_, sample_scratch_bytes(rows_, table_.rows));
  buffers_.past_length = row_numbers_;
  buffers_.present_length = row_numbers_ + row_stride_;
  buffers_.logit_rows = row_numbers_ + 3 * row_stride_;
  buffers_.last_position = row_words_;
  return carver.used();
}

void DeviceDecoder::check(int64_t hidden, int64_t vocab) const {
  const auto require = [](int64_t actual, int64_t expected, const char* what) {
    if (actual != expected) {
      throw InputError("the device's decoder is made for " + std::string(what) + " " +
                       std::to_string(actual) + ", not " + std::to_string(expected));
    }
  };
  require(table_.width, hidden, "hidden size");
  require(table_.rows, vocab, "vocabulary size");
  if (!engine_) throw InputError("the device's decoder has no engine");
}

void DeviceDecoder::start(int64_t row, const Request& request) {
  const SamplerState state = sampler_state(request.sampling);
  device_->upload(states_ + row, &state, sizeof(state));
  if (state.penalizes) {
    std::vector<int32_t> counts(table_.rows, -1);
    for (const int32_t id : request.token_ids) counts[id] = 0;
    device_->upload(answer_counts_ + row * table_.rows, counts.data(), counts.size() * sizeof(int32_t));
  }
  chosen_[row] = 0;
  logprobs_[row] = state.logprobs;
  visuals_.clear();
}

// The visual's address on the device; what lies on the host is uploaded once a prompt.
const float* DeviceDecoder::visual_on_device(const VisualEmbeddings& visual) {
  if (visual.on_device) return visual.data;
  auto found = visuals_.find(visual.data);
  if (found == visuals_.end()) {
    const size_t bytes = visual.rows * visual.width * sizeof(float);
    found = visuals_.emplace(visual.data, DeviceBlock(device_, bytes)).first;
    device_->upload(found->second.as<float>(), visual.data, bytes);
  }
  return found->second.as<float>();
}

void DeviceDecoder::prefill(int64_t row, const Request& request, const Prompt& prompt, int64_t begin,
                            int64_t end) {
  const int64_t count = end - begin, width = table_.width;
  std::vector<const float*> visual_rows(count, nullptr);
  for (size_t i = 0; i < prompt.blocks.size(); ++i) {
    const VisualBlock& block = prompt.blocks[i];
    const int64_t first = std::max(begin, block.begin), last = std::min(end, block.begin + block.length);
    if (first >= last) continue;
    if (request.visuals[i].data == nullptr) {
      throw InputError("visual " + std::to_string(i) + " has no embeddings, and the cache does not hold it");
    }
    const float* const rows = visual_on_device(request.visuals[i]);
    for (int64_t token = first; token < last; ++token) {
      visual_rows[token - begin] = rows + (token - block.begin) * width;
    }
  }
  std::vector<int64_t> positions(3 * count);
  for (int64_t axis = 0; axis < 3; ++axis) {
    std::copy_n(&prompt.positions[axis * prompt.tokens + begin], count, &positions[axis * count]);
  }
  device_->upload(chunk_ids_, &request.token_ids[begin], count * sizeof(int32_t));
  device_->upload(chunk_positions_, positions.data(), positions.size() * sizeof(int64_t));
  device_->upload(chunk_visuals_, visual_rows.data(), count * sizeof(float*));
  const auto last = static_cast<int32_t>(end - 1);
  const int64_t logit_row = count - 1;
  device_->upload(buffers_.past_length, &begin, sizeof(begin));
  device_->upload(buffers_.present_length, &end, sizeof(end));
  device_->upload(buffers_.last_position, &last, sizeof(last));
  device_->upload(buffers_.logit_rows, &logit_row, sizeof(logit_row));
  device_->gather_embeddings({table_, chunk_ids_, chunk_visuals_, count, type_, buffers_.inputs_embeds});
  device_->rope_rows(
      {inv_freq_, axis_, rope_width_, chunk_positions_, count, count, type_, buffers_.cos, buffers_.sin});
  engine_->enqueue({row, 1, count, end, true});
}

void DeviceDecoder::sample(int64_t row, int64_t rows) {
  SampleStep step{};
  step.rows = rows;
  step.vocab = table_.rows;
  step.logits = buffers_.logits;
  step.states = states_ + row;
  step.answer_counts = answer_counts_ + row * table_.rows;
  step.sampled = sampled_ + row;
  place_sample_scratch(&step, sample_scratch_);
  device_->sample_rows(step);
}

SampledToken DeviceDecoder::first_token(int64_t row) {
  sample(row, 1);
  SampledRow sampled;
  device_->download(&sampled, sampled_ + row, sizeof(sampled));
  return take(sampled, row);
}

SampledToken DeviceDecoder::take(const SampledRow& sampled, int64_t row) {
  return sampled_token(sampled, chosen_[row]++, logprobs_[row]);
}

void DeviceDecoder::move(int64_t from, int64_t to) {
  device_->copy(states_ + to, states_ + from, sizeof(SamplerState));
  device_->copy(answer_counts_ + to * table_.rows, answer_counts_ + from * table_.rows,
                table_.rows * sizeof(int32_t));
  chosen_[to] = chosen_[from];
  logprobs_[to] = logprobs_[from];
}

void DeviceDecoder::begin(const std::vector<DecodeRow>& rows) {
  decode_rows_ = static_cast<int64_t>(rows.size());
  launched_ = waited_ = 0;
  std::vector<int64_t> numbers(4 * row_stride_);
  std::vector<int32_t> words(2 * row_stride_);
  for (int64_t row = 0; row < decode_rows_; ++row) {
    numbers[row] = rows[row].past_length;
    numbers[row_stride_ + row] = rows[row].past_length + 1;
    numbers[2 * row_stride_ + row] = rows[row].position;
    words[row] = static_cast<int32_t>(rows[row].past_length);
    words[row_stride_ + row] = rows[row].token;
  }
  device_->upload(row_numbers_, numbers.data(), numbers.size() * sizeof(int64_t));
  device_->upload(row_words_, words.data(), words.size() * sizeof(int32_t));
  embed_rows();
}

void DeviceDecoder::embed_rows() {
  device_->gather_embeddings(
      {table_, row_words_ + row_stride_, nullptr, decode_rows_, type_, buffers_.inputs_embeds});
  device_->rope_rows({inv_freq_, axis_, rope_width_, row_numbers_ + 2 * row_stride_, 0, decode_rows_, type_,
                      buffers_.cos, buffers_.sin});
}

void DeviceDecoder::run_engine() { engine_->enqueue({0, decode_rows_, 1, cache()->capacity(), false}); }

void DeviceDecoder::finish_step(int64_t slot) {
  sample(0, decode_rows_);
  device_->advance_rows({decode_rows_, buffers_.past_length, buffers_.present_length, buffers_.last_position,
                         row_numbers_ + 2 * row_stride_, row_words_ + row_stride_, sampled_,
                         results_.on_device<SampledRow>() + slot * rows_});
  embed_rows();
}

void DeviceDecoder::launch() {
  const int64_t slot = launched_++ % 2;
  const auto step = [&] {
    if (recordable_) run_engine();
    finish_step(slot);
  };
  if (!recordable_) run_engine();
  std::unique_ptr<Recording>& recording = recordings_[2 * decode_rows_ + slot];
  if (!recording) {
    // The first run loads what has to be loaded, which can't be recorded.
    recording = device_->recording();
    step();
  } else if (!recording->replay() && !record(*recording, step)) {
    // The engine said that it can be recorded, and can't: from now on its steps are queued one by one.
    recordable_ = false;
    recordings_.clear();
    run_engine();
    finish_step(slot);
  }
  device_->mark(static_cast<int>(slot));
}

bool DeviceDecoder::record(Recording& recording, const std::function<void()>& step) {
  recording.begin();
  try {
    step();
    recording.end();
    return true;
  } catch (const DeviceError&) {
    recording.abandon();
    if (!recordable_) throw;
    return false;
  } catch (...) {
    recording.abandon();
    throw;
  }
}

void DeviceDecoder::wait() { device_->wait_for(static_cast<int>(waited_++ % 2)); }

SampledToken DeviceDecoder::token(int64_t row) {
  return take(results_.as<SampledRow>()[(waited_ - 1) % 2 * rows_ + row], row);
}

void DeviceDecoder::drain() noexcept {
  try {
    device_->synchronize();
  } catch (const Error&) {
    // What failed is being reported already.
  }
}

}  // namespace qwen2vl
