#pragma once

#include <cstdint>

namespace qwen2vl {

// A team of threads that runs one algorithm together: rank() of size() takes every size()-th piece of work,
// sync() is a barrier, reduce() combines one value of each member and gives all of them the result, add() is
// atomic. This is the team of one; a CUDA block is the other (cuda/block_team.cuh). Code over teams is
// compiled for both, so that what the GPU computes is tested without one.
struct SerialTeam {
  int rank() const { return 0; }
  int size() const { return 1; }
  void sync() const {}
  template <typename T, typename Combine>
  T reduce(T value, Combine) const {
    return value;
  }
  void add(uint64_t* target, uint64_t value) const { *target += value; }
  int32_t take(int32_t* counter) const { return (*counter)++; }
};

}  // namespace qwen2vl
