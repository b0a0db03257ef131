// The compiled runtime's parts on fixed inputs, as text. test_core_on_arm.py builds it for aarch64, runs it
// under QEMU and compares every line with what the same parts give in this process.

#include <array>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "cache/kv_cache.h"
#include "common/error.h"
#include "common/parallel.h"
#include "image/prepare_frame.h"
#include "image/smart_resize.h"
#include "rope/mrope_positions.h"
#include "rope/rope_table.h"
#include "rope/vision_rope_table.h"
#include "rope/visual_blocks.h"
#include "sampling/sampler.h"
#include "text/utf8_decoder.h"

namespace {

using namespace qwen2vl;

template <typename T>
void print(const char* name, const std::vector<T>& values) {
  std::printf("%s", name);
  for (const T value : values) std::printf(" %.9g", static_cast<double>(value));
  std::printf("\n");
}

// Text, a picture of 4 x 6 patches, text, a video of 3 x 4 x 4 patches, text.
void positions() {
  std::vector<int32_t> ids = {1, 2};
  ids.insert(ids.end(), 6, 90);
  ids.insert(ids.end(), {3, 4, 5});
  ids.insert(ids.end(), 12, 91);
  ids.push_back(6);
  const std::vector<int64_t> grids = {1, 4, 6, 3, 4, 4};
  const auto tokens = static_cast<int64_t>(ids.size());
  const auto blocks = find_visual_blocks(ids.data(), tokens, grids.data(), 2, VisualTokens{90, 91, 2});
  std::vector<int64_t> positions(3 * tokens);
  const int64_t delta = mrope_positions(blocks, tokens, positions.data());
  print("positions", positions);
  print("delta", std::vector<int64_t>{delta});

  const RopeTable table(32, 1e6, std::array<int64_t, 3>{4, 6, 6});
  std::vector<float> cos(tokens * table.width()), sin(cos.size());
  table.fill(positions.data(), tokens, 0, tokens, cos.data(), sin.data());
  print("cos", cos);
  print("sin", sin);

  std::vector<float> vision_cos(4 * 6 * 10), vision_sin(vision_cos.size());
  vision_rope_table(4, 6, 20, 2, 10000.0, vision_cos.data(), vision_sin.data());
  print("vision_cos", vision_cos);
  print("vision_sin", vision_sin);
}

// A picture of 61 x 47 pixels, every byte different from its neighbours'; resized up and down.
void picture() {
  const ImageSize size{61, 47};
  std::vector<uint8_t> pixels(size.height * size.width * 3);
  for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = static_cast<uint8_t>(i * 37 + i / 141 * 11);
  const FrameView frame{pixels.data(), size, size.width * 3, 3, 1};
  for (const ImageSize target : {ImageSize{28, 56}, ImageSize{84, 56}}) {
    std::vector<uint8_t> out(target.height * target.width * 3);
    resize_frame(frame, target, PassOrder::kHorizontalFirst, out.data());
    print("resized", out);
  }
  const ImageSize smart = smart_resize({1080, 1920}, 28, 3136, 1003520);
  print("smart_resize", std::vector<int64_t>{smart.height, smart.width});
}

void sampling() {
  std::vector<float> logits(400);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>((i * 7919) % 1000) / 125.0f;
  SamplingOptions options;
  options.temperature = 0.8;
  options.top_p = 0.95;
  options.repetition_penalty = 1.1;
  options.seed = 11;
  const std::vector<int32_t> prompt = {3, 5, 8};
  Sampler sampler(options, static_cast<int64_t>(logits.size()), prompt.data(),
                  static_cast<int64_t>(prompt.size()));
  std::vector<int32_t> ids;
  for (int i = 0; i < 50; ++i) ids.push_back(sampler.sample(logits.data()).id);
  print("sampled", ids);
}

// Characters that arrive in pieces, and bytes that are none. Printed as bytes.
void text() {
  Utf8Decoder decoder;
  std::string out;
  for (const char* piece : {"gr\xc3", "\xbc\xc3\x9f", "e \xf0\x9f", "\x98\x80 \xff\xe2\x82"}) {
    decoder.push(piece, &out);
  }
  decoder.finish(&out);
  print("text", std::vector<uint8_t>(out.begin(), out.end()));
}

void cache() {
  KVCache cache(2, 2, 1, 16, 4);
  const uint64_t identities[] = {7, 8, 9};
  cache.append(0, identities, 3);
  cache.keys(1)[2 * 4 + 1] = 5.0f;
  cache.copy_row(0, 1, 3);
  print("cache",
        std::vector<double>{static_cast<double>(cache.length(1)), cache.keys(1)[16 * 4 + 2 * 4 + 1]});
  try {
    cache.append(0, nullptr, 14);
  } catch (const InputError& error) {
    std::printf("error %s\n", error.what());
  }
}

}  // namespace

int main() {
  set_threads(2);
  positions();
  picture();
  sampling();
  text();
  cache();
}
