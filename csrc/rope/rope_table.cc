#include "rope/rope_table.h"

#include <string>

#include "common/error.h"
#include "rope/inverse_frequencies.h"
#include "rope/rope_kernel.h"

namespace qwen2vl {

RopeTable::RopeTable(int64_t head_dim, double theta, const std::array<int64_t, 3>& sections) {
  if (head_dim < 2 || head_dim % 2 != 0 || head_dim > 65536) {
    throw InputError("head_dim must be even and positive, got " + std::to_string(head_dim));
  }
  if (!(theta > 0)) throw InputError("rope theta must be positive, got " + std::to_string(theta));
  for (size_t axis = 0; axis < sections.size(); ++axis) {
    if (sections[axis] < 0 || sections[axis] > head_dim) {
      throw InputError("mrope section " + std::to_string(axis) + " has size " +
                       std::to_string(sections[axis]));
    }
    axis_.insert(axis_.end(), sections[axis], static_cast<uint8_t>(axis));
  }
  if (static_cast<int64_t>(axis_.size()) != head_dim / 2) {
    throw InputError("mrope sections sum to " + std::to_string(axis_.size()) +
                     ", expected head_dim / 2 = " + std::to_string(head_dim / 2));
  }
  inv_freq_.resize(axis_.size());
  inverse_frequencies(head_dim, static_cast<float>(theta), inv_freq_.data());
}

void RopeTable::fill(const int64_t* positions, int64_t stride, int64_t begin, int64_t tokens, float* cos,
                     float* sin) const {
  cpu::rope_rows({inv_freq_.data(), axis_.data(), width(), positions + begin, stride, tokens,
                  FloatType::kFloat32, cos, sin});
}

void RopeTable::fill_text(int64_t position, float* cos, float* sin) const {
  fill(&position, 0, 0, 1, cos, sin);
}

}  // namespace qwen2vl
