#include "device/frame_preparer.h"

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "common/error.h"

namespace qwen2vl {

namespace {

constexpr size_t kMostSizes = 32;  // sizes whose weights are kept; cameras have one

}  // namespace

FramePreparer::FramePreparer(std::shared_ptr<Device> device, const float* table, const PatchLayout& layout,
                             PassOrder order)
    : device_(std::move(device)), layout_(layout), order_(order), table_(device_, 3 * 256 * sizeof(float)) {
  check_layout(layout);
  device_->upload(table_.as<float>(), table, table_.size());
}

const FramePreparer::Weights& FramePreparer::weights(ImageSize from, ImageSize to) {
  const auto key = std::make_tuple(from.height, from.width, to.height, to.width);
  const auto found = weights_.find(key);
  if (found != weights_.end()) return found->second;
  const ResizePlan plan(from, to, order_);
  const int32_t tile_height = frame_tile_height(plan);
  if (tile_height == 0) {
    throw InputError("a frame of " + describe(from) + " in a device's memory cannot be shrunk to " +
                     describe(to) + " in one pass: shrink it first, or pass it as a numpy array");
  }
  if (weights_.size() >= kMostSizes) {
    device_->synchronize();  // whoever still reads them
    weights_.clear();
  }
  // first, count and weights of both axes, one after the other.
  std::vector<int32_t> values;
  const auto append = [&](const std::vector<int32_t>& part) {
    const size_t begin = values.size();
    values.insert(values.end(), part.begin(), part.end());
    return begin;
  };
  size_t places[2][3];
  const BicubicAxis* const axes[2] = {&plan.vertical, &plan.horizontal};
  for (int i = 0; i < 2; ++i) {
    places[i][0] = append(axes[i]->first);
    places[i][1] = append(axes[i]->count);
    places[i][2] = append(axes[i]->weights);
  }
  Weights made;
  made.memory = DeviceBlock(device_, values.size() * sizeof(int32_t));
  device_->upload(made.memory.as<char>(), values.data(), made.memory.size());
  const int32_t* const base = made.memory.as<int32_t>();
  const auto view = [&](int i) {
    return AxisView{base + places[i][0],
                    base + places[i][1],
                    base + places[i][2],
                    static_cast<int32_t>(axes[i]->taps),
                    static_cast<int32_t>(axes[i]->input),
                    static_cast<int32_t>(axes[i]->output)};
  };
  made.vertical = view(0);
  made.horizontal = view(1);
  made.vertical_first = plan.vertical_first;
  made.tile_height = tile_height;
  return weights_.emplace(key, std::move(made)).first->second;
}

void FramePreparer::prepare(const FrameView& frame, ImageSize resized, int64_t slot_begin, int64_t slot_end,
                            FloatType type, void* patches, uint64_t* digest) {
  check_frame(frame.size, resized, layout_, slot_begin, slot_end);
  const Weights& weights = this->weights(frame.size, resized);
  FrameJob job{};
  job.frame = frame;
  job.vertical = weights.vertical;
  job.horizontal = weights.horizontal;
  job.vertical_first = weights.vertical_first;
  job.layout = layout_;
  job.table = table_.as<float>();
  job.slot_begin = static_cast<int32_t>(slot_begin);
  job.slot_end = static_cast<int32_t>(slot_end);
  job.type = type;
  job.patches = patches;
  job.digest = digest;
  if (digest != nullptr) device_->zero(digest, 4 * sizeof(uint64_t));
  job.tile_height = weights.tile_height;
  device_->prepare_frame_job(job);
}

}  // namespace qwen2vl
