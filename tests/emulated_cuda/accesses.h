#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// Checks what kernels load and store: it lies inside of a piece of memory, shared memory has been written
// before, and threads that touch the same place are in an order, whichever way it went this time. Loads and
// stores report themselves (accesses.cc has what the compiler calls for that), and the rest is said below.
// What orders a block's threads is __syncthreads, and __syncwarp for a warp's; shuffles order nothing. Blocks
// are ordered by counters that acquire and release, kernels by the stream, and one that starts early by its
// wait for those before it. Two atomic additions are never a race.
namespace emulated_cuda {

// A launch's place in all that the GPU does. Whatever came before `last_in_turn` is done, however early this
// one starts; what came from there on is done once it has waited.
struct Order {
  uint32_t number = 0, last_in_turn = 0;
};

struct BlockClock {
  Order order;
  uint32_t number = 0, blocks = 1;  // of the block in its grid, and of the grid
  const char *shared[2] = {}, *dynamic[2] = {};
  // What other blocks did before so many of their barriers has been acquired by a thread, at a barrier count.
  std::vector<uint32_t> acquired;
  uint32_t acquired_at = 0;
  uint16_t acquired_by = 0;
};

// A thread that runs, and how many barriers it has passed.
struct ThreadClock {
  BlockClock* block = nullptr;
  const char* stack[2] = {};
  uint16_t number = 0;  // in its block
  uint32_t barriers = 0, warp_barriers = 0;
  bool waited = true;  // for the kernels before
};

namespace accesses {

// That of the thread that runs; null while none does.
extern ThreadClock* running;

enum class Kind { kRead, kWrite, kAtomic, kAcquireRelease };
// Checks the running thread's access; `place`: the address of the code. kAcquireRelease: an addition that is
// atomic, releases what the block did before its last barrier, and acquires what others released there
// before.
void check(Kind kind, const void* address, size_t bytes, const void* place);

// What was wrong first since the last call; empty when nothing was.
std::string take_report();
// Memory that is gone.
void forget(const void* begin, size_t bytes);

}  // namespace accesses
}  // namespace emulated_cuda
