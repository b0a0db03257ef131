// Threads change places by longjmp from one stack to another, which glibc's checked version forbids.
#undef _FORTIFY_SOURCE

#include "block.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern char __start_emulated_shared[] __attribute__((weak));
extern char __stop_emulated_shared[] __attribute__((weak));

namespace emulated_cuda {

namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned kWarp = 32;
constexpr int kRubbish = 0xCB;

enum class State { kReady, kAtBarrier, kAtShuffle, kFinished };

struct Thread {
  jmp_buf place;
  ucontext_t birth;
  std::unique_ptr<char[]> stack;
  uint3 index;
  State state = State::kFinished;
  uint64_t exchange = 0;  // of its warp, that it waits for
};

struct Warp {
  uint32_t values[2][kWarp];  // of this exchange and the one before, by turns
  unsigned arrived = 0;
  uint64_t exchanges = 0;
};

// One for the process: launches hold the emulated GPU's lock.
class Block {
 public:
  void run(unsigned threads, const std::function<void()>& body) {
    prepare(threads);
    body_ = &body;
    const auto warps = static_cast<unsigned>(warps_.size());
    for (unsigned finished = 0; finished < threads;) {
      // One warp after the other goes as far as it gets: what another warp has to wait for, and doesn't,
      // shows.
      bool moved = false;
      unsigned at = draw() % warps;
      const unsigned step = stride(warps);
      for (unsigned i = 0; i < warps; ++i, at = (at + step) % warps) {
        while (run_warp(at, threads, &finished) > 0) moved = true;
      }
      if (moved) continue;
      unsigned waiting = 0;
      for (unsigned i = 0; i < threads; ++i) waiting += threads_[i].state == State::kAtBarrier;
      if (waiting < threads) {
        abandon();
        throw std::runtime_error(finished > 0 ? "threads returned while others wait for them"
                                              : "threads wait for each other at different places");
      }
      for (unsigned i = 0; i < threads; ++i) threads_[i].state = State::kReady;
    }
  }

  void barrier() { leave(State::kAtBarrier); }

  uint32_t exchange(uint32_t value, unsigned lane_mask) {
    const auto number = static_cast<unsigned>(current_ - threads_.data());
    Warp& warp = warps_[number / kWarp];
    const uint64_t exchange = warp.exchanges;
    warp.values[exchange % 2][number % kWarp] = value;
    if (++warp.arrived == kWarp) {
      warp.arrived = 0;
      ++warp.exchanges;
    } else {
      current_->exchange = exchange;
      leave(State::kAtShuffle);
    }
    return warp.values[exchange % 2][(number % kWarp) ^ lane_mask];
  }

 private:
  uint64_t draw() { return (draws_ = draws_ * 6364136223846793005u + 1442695040888963407u) >> 33; }

  // A step by which every one of `count` is met once: any odd one where they are a power of two.
  unsigned stride(unsigned count) {
    if (count < 2) return 0;
    return (count & (count - 1)) == 0 ? (draw() | 1) % count : draw() % 2 == 0 ? 1 : count - 1;
  }

  // Lets the warp's threads run that can, each until it waits; how many did.
  unsigned run_warp(unsigned number, unsigned threads, unsigned* finished) {
    const unsigned begin = number * kWarp, lanes = std::min(kWarp, threads - begin);
    unsigned ran = 0, at = draw() % lanes;
    const unsigned step = stride(lanes);
    for (unsigned i = 0; i < lanes; ++i, at = (at + step) % lanes) {
      Thread& thread = threads_[begin + at];
      const bool exchanged = thread.state == State::kAtShuffle && warps_[number].exchanges != thread.exchange;
      if (thread.state != State::kReady && !exchanged) continue;
      resume(thread);
      ++ran;
      if (thread.state == State::kFinished) ++*finished;
    }
    return ran;
  }

  void prepare(unsigned threads) {
    if (threads_.size() < threads) threads_ = std::vector<Thread>(threads);
    warps_.assign((threads + kWarp - 1) / kWarp, Warp{});
    for (unsigned i = 0; i < threads; ++i) {
      Thread& thread = threads_[i];
      const unsigned x = i % blockDim.x, rest = i / blockDim.x;
      thread.index = {x, rest % blockDim.y, rest / blockDim.y};
      thread.state = State::kReady;
      if (!thread.stack) {
        thread.stack.reset(new char[kStackBytes]);  // not zeroed: untouched pages cost nothing
        getcontext(&thread.birth);
        thread.birth.uc_stack.ss_sp = thread.stack.get();
        thread.birth.uc_stack.ss_size = kStackBytes;
        makecontext(&thread.birth, &Block::live, 0);
        current_ = &thread;
        if (_setjmp(scheduler_) == 0) setcontext(&thread.birth);
      }
    }
  }

  // A thread's life: born, it waits for its first body, and after each for the next.
  static void live() {
    Block& block = one();
    Thread* const self = block.current_;
    for (;;) {
      if (_setjmp(self->place) == 0) _longjmp(block.scheduler_, 1);
      (*block.body_)();
      self->state = State::kFinished;
    }
  }

  void resume(Thread& thread) {
    current_ = &thread;
    thread.state = State::kReady;
    threadIdx = thread.index;
    if (_setjmp(scheduler_) == 0) _longjmp(thread.place, 1);
  }

  void leave(State state) {
    Thread* const self = current_;
    self->state = state;
    if (_setjmp(self->place) == 0) _longjmp(scheduler_, 1);
  }

  void abandon() {
    threads_.clear();
    warps_.clear();
  }

 public:
  static Block& one() {
    static Block block;
    return block;
  }

 private:
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Thread* current_ = nullptr;
  jmp_buf scheduler_;
  const std::function<void()>* body_ = nullptr;
  uint64_t draws_ = 1;
};

}  // namespace

void run_grid(dim3 grid, dim3 block, const std::function<void()>& body) {
  gridDim = grid;
  blockDim = block;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  static uint64_t launches = 0;
  const bool backwards = ++launches % 2 == 0;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t number = backwards ? blocks - 1 - i : i;
    blockIdx = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                static_cast<unsigned>(number / grid.x / grid.y)};
    if (__start_emulated_shared != nullptr) {
      memset(__start_emulated_shared, kRubbish, __stop_emulated_shared - __start_emulated_shared);
    }
    Block::one().run(block.x * block.y * block.z, body);
  }
}

}  // namespace emulated_cuda

void __syncthreads() { emulated_cuda::Block::one().barrier(); }

uint32_t __shfl_xor_sync(uint32_t mask, uint32_t value, int lane_mask) {
  if (mask != 0xFFFFFFFFu || blockDim.x * blockDim.y * blockDim.z % 32 != 0) {
    throw std::logic_error("only whole warps are emulated");
  }
  return emulated_cuda::Block::one().exchange(value, static_cast<unsigned>(lane_mask));
}
