#pragma once

#include <math.h>

#include <cfloat>
#include <cstdint>

#include "common/float_type.h"
#include "common/host_device.h"
#include "sampling/logits.h"
#include "sampling/penalties.h"
#include "sampling/philox.h"
#include "sampling/sample_kernel.h"
#include "sampling/softmax.h"

// One row's sampling step by a team of threads: see common/team.h. Every member calls with the same
// arguments.
namespace qwen2vl {

constexpr int32_t kDigitBits = 11;
constexpr int32_t kDigits = 1 << kDigitBits;
constexpr int32_t kDigitGroups = 32;
constexpr int32_t kEveryId = 0x7FFFFFFF;

// What the team shares; in a CUDA block this is shared memory.
struct SampleShared {
  uint64_t histogram[kDigits];
  uint64_t groups[kDigitGroups];
  float weights[kLogitBlock];
  TokenLogit best[kMostAlternatives];
  int32_t best_count;
  // Results that one member broadcasts to the others.
  uint64_t mass_above, mass_at;
  uint32_t key;
  int32_t chosen;
  double total;
};

// use(id, logit) for the member's share of ids [begin, end), smallest first. Several loads are under way at
// once; none is of another member's.
template <typename Team, typename Use>
QWEN2VL_TEAM void each_logit(const Team& team, const float* logits, int64_t begin, int64_t end, Use use) {
  constexpr int kAhead = 8;
  const int64_t step = team.size();
  for (int64_t first = begin + team.rank(); first < end; first += kAhead * step) {
    float values[kAhead];
    for (int i = 0; i < kAhead; ++i) {
      const int64_t id = first + i * step;
      values[i] = logits[id < end ? id : first];
    }
    for (int i = 0; i < kAhead; ++i) {
      const int64_t id = first + i * step;
      if (id < end) use(id, values[i]);
    }
  }
}

// Bits of a float as an integer that orders like it; -0 and 0 are one.
QWEN2VL_TEAM uint32_t ordered_key(float value) {
  const uint32_t bits = bits_of_float(value + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
QWEN2VL_TEAM float value_of_key(uint32_t key) {
  return float_from_bits(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

QWEN2VL_TEAM PeakPart better_part(PeakPart a, PeakPart b) {
  const bool first = a.logit > b.logit || (a.logit == b.logit && a.id <= b.id);
  PeakPart best = first ? a : b;
  best.flags = a.flags | b.flags;
  return best;
}

// The best of logits [begin, end); all members get it.
template <typename Team>
QWEN2VL_TEAM_CALL PeakPart scan_part(Team team, int64_t begin, int64_t end, const float* logits) {
  PeakPart part{-INFINITY, kEveryId, 0, 0};
  each_logit(team, logits, begin, end, [&](int64_t id, float logit) {
    const bool better = logit > part.logit;
    part.logit = better ? logit : part.logit;
    part.id = better ? static_cast<int32_t>(id) : part.id;
    part.flags |= logit != logit ? kHasNan : logit > FLT_MAX ? kHasInfinity : 0;
  });
  return team.reduce(part, [](PeakPart a, PeakPart b) { return better_part(a, b); });
}

// Pass 1, one piece of the vocabulary: its best token, and with penalties the penalized logits and their
// best.
template <typename Team>
QWEN2VL_TEAM void sample_peaks(const Team& team, const SampleStep& step, int64_t row, int32_t part) {
  const int64_t length = (step.vocab + kPeakParts - 1) / kPeakParts;
  const int64_t begin = part * length;
  const int64_t end = begin + length < step.vocab ? begin + length : step.vocab;
  const float* const logits = step.logits + row * step.vocab;
  const SamplerState& state = step.states[row];
  PeakPart* const parts = step.parts + row * 2 * kPeakParts;
  const PeakPart best = scan_part(team, begin, end, logits);
  if (team.rank() == 0) parts[part] = best;
  if (!state.penalizes) return;
  float* const penalized = step.penalized + row * step.vocab;
  const int32_t* const counts = step.answer_counts + row * step.vocab;
  for (int64_t id = begin + team.rank(); id < end; id += team.size()) {
    penalized[id] = counts[id] < 0 ? logits[id]
                                   : penalized_logit(logits[id], counts[id], state.repetition_penalty,
                                                     state.presence_penalty, state.frequency_penalty);
  }
  const PeakPart after = scan_part(team, begin, end, penalized);  // each member reads what it wrote
  if (team.rank() == 0) parts[kPeakParts + part] = after;
}

QWEN2VL_TEAM PeakPart join_parts(const PeakPart* parts) {
  PeakPart best = parts[0];
  for (int32_t i = 1; i < kPeakParts; ++i) best = better_part(best, parts[i]);
  return best;
}

QWEN2VL_TEAM int32_t status_of(const PeakPart& peak) {
  return peak.flags | (peak.logit == -INFINITY ? kNothingFinite : 0);
}

// Walks down the keys of all tokens, largest first, until their masses sum to `needed` (at least 1 and at
// most the sum of all): the key reached. shared.mass_above and mass_at are the masses before it and at it.
// key and mass are of (id, logit); mass is 0 for tokens that don't take part.
template <typename Team, typename Key, typename Mass>
QWEN2VL_TEAM uint32_t select_key(const Team& team, SampleShared& shared, const float* logits, int64_t count,
                                 uint64_t needed, Key key, Mass mass) {
  uint32_t prefix = 0;
  uint64_t above = 0;
  int32_t shift = 32;
  while (shift > 0) {
    const int32_t bits = shift < kDigitBits ? shift : kDigitBits;
    const int32_t digits = 1 << bits, group = digits / kDigitGroups;
    const uint32_t known = shift == 32 ? 0 : ~uint32_t{0} << shift;  // bits of the key that prefix holds
    shift -= bits;
    for (int32_t i = team.rank(); i < digits; i += team.size()) shared.histogram[i] = 0;
    team.sync();
    each_logit(team, logits, 0, count, [&](int64_t id, float logit) {
      const uint64_t amount = mass(id, logit);
      if (amount == 0) return;
      const uint32_t value = key(id, logit);
      if ((value & known) == prefix) team.add(&shared.histogram[value >> shift & (digits - 1)], amount);
    });
    team.sync();
    for (int32_t i = team.rank(); i < kDigitGroups; i += team.size()) {
      uint64_t sum = 0;
      // Each begins elsewhere: the groups' first lie in the same of shared memory's banks.
      for (int32_t j = 0; j < group; ++j) sum += shared.histogram[i * group + ((i + j) & (group - 1))];
      shared.groups[i] = sum;
    }
    team.sync();
    if (team.rank() == 0) {
      uint64_t before = above;
      int32_t i = kDigitGroups - 1;
      for (; i > 0 && before + shared.groups[i] < needed; --i) before += shared.groups[i];
      int32_t digit = i * group + group - 1;
      for (; digit > i * group && before + shared.histogram[digit] < needed; --digit) {
        before += shared.histogram[digit];
      }
      shared.mass_above = before;
      shared.mass_at = shared.histogram[digit];
      shared.key = prefix | static_cast<uint32_t>(digit) << shift;
    }
    team.sync();
    // Nobody need wait for the others to have read these, here or in the caller: they are written again
    // behind three more barriers.
    above = shared.mass_above;
    prefix = shared.key;
  }
  return prefix;
}

// The cutoff that keeps the first tokens, in order of preference, whose masses sum to at least `needed`;
// mass(logit) is 0 for those that don't take part.
template <typename Team, typename Mass>
QWEN2VL_TEAM Cutoff select_cutoff(const Team& team, SampleShared& shared, const float* logits, int64_t vocab,
                                  uint64_t needed, Mass mass) {
  const uint32_t key = select_key(
      team, shared, logits, vocab, needed, [](int64_t, float logit) { return ordered_key(logit); },
      [&](int64_t, float logit) { return mass(logit); });
  const float value = value_of_key(key);
  const uint64_t each = mass(value);
  const uint64_t missing = needed - shared.mass_above, present = shared.mass_at;
  const uint64_t wanted = (missing + each - 1) / each;
  if (wanted * each >= present) return {value, kEveryId};  // all that tie, most often one
  // Of equal logits the smaller ids come first.
  const uint32_t last = select_key(
      team, shared, logits, vocab, wanted, [](int64_t id, float) { return ~static_cast<uint32_t>(id); },
      [&](int64_t, float logit) -> uint64_t { return logit == value ? 1 : 0; });
  return {value, static_cast<int32_t>(~last)};
}

// Softmax weights as integers, whose sums don't depend on their order: 44 fraction bits, so that a million
// tokens still fit 64 bits.
struct FixedWeight {
  float peak, inverse_temperature;

  // To the nearest, half up. By the weight's digits: many a GPU has next to no arithmetic of 64-bit floats,
  // nor conversions from there.
  QWEN2VL_TEAM uint64_t of(float logit) const {
    const float exponent = (logit - peak) * inverse_temperature;
    if (exponent < -31.25f) return 0;  // most tokens: their weight is less than 2^-45
    const uint32_t bits = bits_of_float(exp_nonpositive(exponent));
    const uint64_t digits = (bits & 0x7FFFFFu) | 0x800000u;
    const int32_t shift = static_cast<int32_t>(bits >> 23) - (127 + 23 - 44);
    if (shift >= 0) return digits << shift;
    return shift < -24 ? 0 : (digits + (uint64_t{1} << (-shift - 1))) >> -shift;
  }
};

// The first `count` tokens in order of preference.
template <typename Team>
QWEN2VL_TEAM_CALL Cutoff best_cutoff(Team team, SampleShared& shared, const float* logits, int64_t vocab,
                                     float peak, int64_t count) {
  // Most tokens are far below the few that are wanted: only those near the peak need to be told apart.
  float floor = -INFINITY;
  for (const float depth : {4.0f, 16.0f}) {
    uint64_t near = 0;
    each_logit(team, logits, 0, vocab, [&](int64_t, float logit) { near += logit >= peak - depth ? 1 : 0; });
    near = team.reduce(near, [](uint64_t a, uint64_t b) { return a + b; });
    if (near >= static_cast<uint64_t>(count)) {
      floor = peak - depth;
      break;
    }
  }
  return select_cutoff(team, shared, logits, vocab, static_cast<uint64_t>(count),
                       [&](float logit) -> uint64_t { return logit >= floor ? 1 : 0; });
}

template <typename Team>
QWEN2VL_TEAM Cutoff nucleus_cutoff(const Team& team, SampleShared& shared, const float* logits, int64_t vocab,
                                   const FixedWeight& weight, double top_p, Cutoff above) {
  const float near = weight.peak - 8.0f / weight.inverse_temperature;
  struct Sums {
    uint64_t all, near;
  } sums{0, 0};
  each_logit(team, logits, 0, vocab, [&](int64_t, float logit) {
    if (!(logit >= above.logit)) return;
    const uint64_t amount = weight.of(logit);
    sums.all += amount;
    if (logit >= near) sums.near += amount;
  });
  sums = team.reduce(sums, [](Sums a, Sums b) { return Sums{a.all + b.all, a.near + b.near}; });
  auto needed = static_cast<uint64_t>(ceil(top_p * static_cast<double>(sums.all)));
  needed = needed < 1 ? 1 : needed > sums.all ? sums.all : needed;
  const float floor = sums.near >= needed && near > above.logit ? near : above.logit;
  return select_cutoff(team, shared, logits, vocab, needed,
                       [&](float logit) -> uint64_t { return logit >= floor ? weight.of(logit) : 0; });
}

// One member's use(block, sum) for all blocks in order. They come by way of shared memory, since additions in
// order can't wait for each sum alone.
template <typename Team, typename Use>
QWEN2VL_TEAM void each_block_sum(const Team& team, SampleShared& shared, const double* block_sums,
                                 int64_t blocks, Use use) {
  auto* const staged = reinterpret_cast<double*>(shared.histogram);
  for (int64_t first = 0; first < blocks; first += kDigits) {
    const int64_t count = blocks - first < kDigits ? blocks - first : kDigits;
    for (int64_t i = team.rank(); i < count; i += team.size()) staged[i] = block_sums[first + i];
    team.sync();
    for (int64_t i = 0; team.rank() == 0 && i < count; ++i) use(first + i, staged[i]);
    team.sync();
  }
}

// softmax_sum with its order of additions: lanes within a block, then blocks.
template <typename Team>
QWEN2VL_TEAM_CALL double team_softmax_sum(Team team, SampleShared& shared, const float* logits, int64_t vocab,
                                          float peak, float inverse_temperature, Cutoff cutoff,
                                          float* lane_sums, double* block_sums) {
  const int64_t blocks = logit_blocks(vocab);
  const auto block_end = [&](int64_t block) {
    const int64_t end = (block + 1) * kLogitBlock;
    return end < vocab ? end : vocab;
  };
  for (int64_t item = team.rank(); item < blocks * kLogitLanes; item += team.size()) {
    const int64_t block = item / kLogitLanes, lane = item % kLogitLanes;
    const int64_t begin = block * kLogitBlock,
                  end = begin + (block_end(block) - begin) / kLogitLanes * kLogitLanes;
    float sum = 0, values[kLogitBlock / kLogitLanes];  // loaded before the first is needed
    for (int64_t i = 0; i < kLogitBlock / kLogitLanes; ++i) {
      const int64_t id = begin + lane + i * kLogitLanes;
      values[i] = id < end ? logits[id] : -INFINITY;
    }
    for (int64_t i = 0; i < kLogitBlock / kLogitLanes; ++i) {
      const int64_t id = begin + lane + i * kLogitLanes;
      if (id < end && above_cutoff(values[i], static_cast<int32_t>(id), cutoff)) {  // few do
        sum += exp_nonpositive((values[i] - peak) * inverse_temperature);
      }
    }
    lane_sums[item] = sum;
  }
  team.sync();
  for (int64_t block = team.rank(); block < blocks; block += team.size()) {
    double sum = 0;
    for (int64_t lane = 0; lane < kLogitLanes; ++lane) sum += lane_sums[block * kLogitLanes + lane];
    const int64_t begin = block * kLogitBlock;
    for (int64_t id = begin + (block_end(block) - begin) / kLogitLanes * kLogitLanes; id < block_end(block);
         ++id) {
      if (above_cutoff(logits[id], static_cast<int32_t>(id), cutoff)) {
        sum += exp_nonpositive((logits[id] - peak) * inverse_temperature);
      }
    }
    block_sums[block] = sum;
  }
  team.sync();
  double total = 0;
  each_block_sum(team, shared, block_sums, blocks, [&](int64_t, double sum) { total += sum; });
  if (team.rank() == 0) shared.total = total;
  team.sync();
  return shared.total;
}

// softmax_find: the token at which the running sum exceeds `target`.
template <typename Team>
QWEN2VL_TEAM int32_t team_softmax_find(const Team& team, SampleShared& shared, const float* logits,
                                       int64_t vocab, float peak, float inverse_temperature, Cutoff cutoff,
                                       const double* block_sums, double target) {
  const int64_t blocks = logit_blocks(vocab);
  double sum_before = 0;
  int32_t chosen_block = 0;
  bool found = false;
  each_block_sum(team, shared, block_sums, blocks, [&](int64_t block, double sum) {
    if (found || sum == 0) return;
    chosen_block = static_cast<int32_t>(block);
    found = sum_before + sum > target;
    if (!found) sum_before += sum;
  });
  if (team.rank() == 0) {
    shared.chosen = chosen_block;
    shared.total = sum_before;
  }
  team.sync();
  const int64_t begin = shared.chosen * kLogitBlock;
  const int64_t end = begin + kLogitBlock < vocab ? begin + kLogitBlock : vocab;
  for (int64_t id = begin + team.rank(); id < end; id += team.size()) {
    shared.weights[id - begin] = above_cutoff(logits[id], static_cast<int32_t>(id), cutoff)
                                     ? exp_nonpositive((logits[id] - peak) * inverse_temperature)
                                     : 0.0f;
  }
  team.sync();
  if (team.rank() == 0) {
    double running = shared.total;
    int32_t last = 0;
    for (int64_t id = begin; id < end; ++id) {
      const float weight = shared.weights[id - begin];
      if (weight == 0) continue;
      last = static_cast<int32_t>(id);
      running += weight;
      if (running > target) break;
    }
    shared.chosen = last;
  }
  team.sync();
  return shared.chosen;
}

// The chosen token's log-probability and the most likely tokens', by the model's own logits.
template <typename Team>
QWEN2VL_TEAM void team_logprobs(const Team& team, SampleShared& shared, const SampleStep& step, int64_t row,
                                float peak, int32_t wanted, float* lane_sums, double* block_sums) {
  const float* const logits = step.logits + row * step.vocab;
  SampledRow& result = step.sampled[row];
  const double log_sum = log(team_softmax_sum(team, shared, logits, step.vocab, peak, 1.0f,
                                              Cutoff{-INFINITY, kEveryId}, lane_sums, block_sums));
  const auto logprob = [&](float logit) {
    return static_cast<float>(logit - static_cast<double>(peak) - log_sum);
  };
  const auto count = static_cast<int32_t>(wanted < step.vocab ? wanted : step.vocab);
  if (team.rank() == 0) {
    result.logprob = logprob(logits[result.id]);
    result.alternatives = count;
    shared.best_count = 0;  // the others come to it behind best_cutoff's barriers
  }
  if (count == 0) return;
  const Cutoff cutoff = best_cutoff(team, shared, logits, step.vocab, peak, count);
  each_logit(team, logits, 0, step.vocab, [&](int64_t id, float logit) {
    if (!above_cutoff(logit, static_cast<int32_t>(id), cutoff)) return;
    shared.best[team.take(&shared.best_count)] = {logit, static_cast<int32_t>(id)};
  });
  team.sync();
  for (int32_t i = team.rank(); i < count; i += team.size()) {  // each finds its own rank
    int32_t place = 0;
    for (int32_t j = 0; j < count; ++j) place += precedes(shared.best[j], shared.best[i]) ? 1 : 0;
    result.alternative_ids[place] = shared.best[i].id;
    result.alternative_logprobs[place] = logprob(shared.best[i].logit);
  }
}

// Pass 2, after sample_peaks of all pieces: chooses the row's token and advances its state.
template <typename Team>
QWEN2VL_TEAM void sample_row(const Team& team, SampleShared& shared, const SampleStep& step, int64_t row) {
  const SamplerState state = step.states[row];
  SampledRow& result = step.sampled[row];
  const int64_t blocks = logit_blocks(step.vocab);
  float* const lane_sums = step.lane_sums + row * blocks * kLogitLanes;
  double* const block_sums = step.block_sums + row * blocks;
  const PeakPart* const parts = step.parts + row * 2 * kPeakParts;
  PeakPart peak = join_parts(parts);
  const float model_peak = peak.logit;
  int32_t status = status_of(peak);
  const float* logits = step.logits + row * step.vocab;
  if (status == 0 && state.penalizes) {
    peak = join_parts(parts + kPeakParts);
    status = status_of(peak);
    if (status != 0) status |= kAfterPenalties;
    logits = step.penalized + row * step.vocab;
  }
  if (status != 0) {
    if (team.rank() == 0) result.status = status;
    return;
  }
  int32_t id = peak.id;
  if (!state.greedy) {
    Cutoff cutoff{-INFINITY, kEveryId};
    if (state.top_k > 0 && state.top_k < step.vocab) {
      cutoff = best_cutoff(team, shared, logits, step.vocab, peak.logit, state.top_k);
      cutoff.last_id = kEveryId;  // whatever ties with the last stays
    }
    if (state.top_p < 1) {
      const FixedWeight weight{peak.logit, state.inverse_temperature};
      cutoff = nucleus_cutoff(team, shared, logits, step.vocab, weight, state.top_p, cutoff);
    }
    const auto floor = static_cast<float>(peak.logit + state.min_p_depth);
    if (floor > cutoff.logit) cutoff = {floor, kEveryId};
    const double total = team_softmax_sum(team, shared, logits, step.vocab, peak.logit,
                                          state.inverse_temperature, cutoff, lane_sums, block_sums);
    const double target = uniform_draw(state.seed, state.step) * total;
    id = team_softmax_find(team, shared, logits, step.vocab, peak.logit, state.inverse_temperature, cutoff,
                           block_sums, target);
  }
  team.sync();  // all have read the state that changes here
  if (team.rank() == 0) {
    result.id = id;
    result.status = 0;
    result.alternatives = 0;
    step.states[row].step = state.step + 1;
    if (state.penalizes) {
      int32_t& count = step.answer_counts[row * step.vocab + id];
      count = count < 0 ? 1 : count + 1;
    }
  }
  if (state.logprobs >= 0) {
    team_logprobs(team, shared, step, row, model_peak, state.logprobs, lane_sums, block_sums);
  }
}

}  // namespace qwen2vl
