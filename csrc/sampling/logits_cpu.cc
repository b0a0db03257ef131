#include <algorithm>
#include <cfloat>
#include <cmath>

#include "common/avx2_clone.h"
#include "sampling/logits.h"

namespace qwen2vl {

namespace {

// The largest of `count` logits, NaN ignored; clears *usable on NaN or +infinity.
QWEN2VL_AVX2_CLONE float block_maximum(const float* logits, int64_t count, bool* usable) {
  float lane_maximum[kLogitLanes];
  int32_t lane_bad[kLogitLanes] = {};
  std::fill_n(lane_maximum, kLogitLanes, -INFINITY);
  int64_t i = 0;
  for (; i + kLogitLanes <= count; i += kLogitLanes) {
    for (int64_t lane = 0; lane < kLogitLanes; ++lane) {
      const float value = logits[i + lane];
      lane_maximum[lane] = value > lane_maximum[lane] ? value : lane_maximum[lane];
      lane_bad[lane] |= value <= FLT_MAX ? 0 : 1;  // false for NaN, too
    }
  }
  float maximum = -INFINITY;
  int32_t bad = 0;
  for (int64_t lane = 0; lane < kLogitLanes; ++lane) {
    maximum = std::max(maximum, lane_maximum[lane]);
    bad |= lane_bad[lane];
  }
  for (; i < count; ++i) {
    maximum = logits[i] > maximum ? logits[i] : maximum;
    bad |= logits[i] <= FLT_MAX ? 0 : 1;
  }
  if (bad != 0) *usable = false;
  return maximum;
}

}  // namespace

Peak find_peak(const float* logits, int64_t vocab, float* block_maxima) {
  Peak peak{{-INFINITY, 0}, true};
  int64_t best_block = 0;
  for (int64_t begin = 0; begin < vocab; begin += kLogitBlock) {
    const float maximum = block_maximum(logits + begin, std::min(kLogitBlock, vocab - begin), &peak.usable);
    block_maxima[begin / kLogitBlock] = maximum;
    if (maximum > peak.best.logit) {
      peak.best.logit = maximum;
      best_block = begin;
    }
  }
  if (peak.best.logit == -INFINITY) peak.usable = false;
  if (!peak.usable) return peak;
  const float* const found = std::find(logits + best_block, logits + vocab, peak.best.logit);
  peak.best.id = static_cast<int32_t>(found - logits);
  return peak;
}

void select_best(const float* logits, const float* block_maxima, int64_t vocab, int64_t count,
                 std::vector<TokenLogit>* selected) {
  selected->clear();
  count = std::min(count, vocab);
  if (count <= 0) return;
  // A heap of the best so far, the least of them on top. Ids come in rising order, so that a logit equal to
  // the least never replaces it, and most blocks are passed over by their maximum alone.
  for (int64_t begin = 0; begin < vocab; begin += kLogitBlock) {
    const int64_t end = std::min(begin + kLogitBlock, vocab);
    const bool full = static_cast<int64_t>(selected->size()) == count;
    if (full && !(block_maxima[begin / kLogitBlock] > selected->front().logit)) continue;
    for (int64_t id = begin; id < end; ++id) {
      if (static_cast<int64_t>(selected->size()) == count) {
        if (!(logits[id] > selected->front().logit)) continue;
        std::pop_heap(selected->begin(), selected->end(), precedes);
        selected->pop_back();
      }
      selected->push_back({logits[id], static_cast<int32_t>(id)});
      std::push_heap(selected->begin(), selected->end(), precedes);
    }
  }
  std::sort_heap(selected->begin(), selected->end(), precedes);
}

}  // namespace qwen2vl
