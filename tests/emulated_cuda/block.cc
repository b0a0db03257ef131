// Threads change places by longjmp from one stack to another, which glibc's checked version forbids.
#undef _FORTIFY_SOURCE

#include "block.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cuda_pipeline_primitives.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern char __start_emulated_shared[] __attribute__((weak));
extern char __stop_emulated_shared[] __attribute__((weak));

namespace emulated_cuda {

// The block whose threads run, one for the process: launches hold the emulated GPU's lock.
static Block* running = nullptr;
static uint64_t draws = 1;

namespace {

constexpr size_t kStackBytes = 128 << 10;
constexpr unsigned kWarp = 32;
constexpr int kRubbish = 0xCB;

enum class State { kReady, kAtBarrier, kAtShuffle, kAtKernelsBefore, kFinished };

// A copy into shared memory that has begun.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Thread {
  jmp_buf place;
  ucontext_t birth;
  std::unique_ptr<char[]> stack;
  uint3 index;
  State state = State::kFinished;
  uint64_t exchange = 0;                    // of its warp, that it waits for
  bool waited = false;                      // for the kernels before
  std::deque<std::vector<Copy>> copies{1};  // under way, by commits; the last has had none yet
};

struct Warp {
  Brought values[2][kWarp];  // of this exchange and the one before, by turns
  unsigned arrived = 0;
  uint64_t exchanges = 0;
};

}  // namespace

class Block {
 public:
  void begin(const Shape& shape, uint3 index, const std::function<void()>& body) {
    shape_ = shape;
    index_ = index;
    body_ = &body;
    count_ = shape.block.x * shape.block.y * shape.block.z;
    finished_ = 0;
    dynamic_.assign((shape.shared_bytes + sizeof(Line) - 1) / sizeof(Line) + 1, Line{});
    std::memset(dynamic_.data(), kRubbish, dynamic_.size() * sizeof(Line));
    shared_.assign(__stop_emulated_shared - __start_emulated_shared, kRubbish);
    enter();
    prepare(count_);
  }

  // Lets the threads run until all have finished, or, before the kernels in front of them are done, wait for
  // those.
  void run(bool kernels_before_done) {
    enter();
    kernels_before_done_ = kernels_before_done;
    const auto warps = static_cast<unsigned>(warps_.size());
    while (finished_ < count_) {
      // One warp after the other goes as far as it gets: what another warp has to wait for, and doesn't,
      // shows.
      bool moved = false;
      unsigned at = draw() % warps;
      const unsigned step = stride(warps);
      for (unsigned i = 0; i < warps; ++i, at = (at + step) % warps) {
        while (run_warp(at, count_) > 0) moved = true;
      }
      if (moved) continue;
      unsigned at_barrier = 0, held = 0;
      for (unsigned i = 0; i < count_; ++i) {
        at_barrier += threads_[i].state == State::kAtBarrier;
        held += threads_[i].state == State::kAtKernelsBefore;
      }
      if (held > 0) break;
      if (at_barrier < count_) {
        throw std::runtime_error(finished_ > 0 ? "threads returned while others wait for them"
                                               : "threads wait for each other at different places");
      }
      for (unsigned i = 0; i < count_; ++i) threads_[i].state = State::kReady;
    }
    const auto* const end = reinterpret_cast<const unsigned char*>(dynamic_.data() + dynamic_.size());
    if (std::any_of(reinterpret_cast<const unsigned char*>(dynamic_.data()) + shape_.shared_bytes, end,
                    [](unsigned char byte) { return byte != kRubbish; })) {
      throw std::runtime_error("a kernel wrote behind its shared memory");
    }
    std::copy(__start_emulated_shared, __stop_emulated_shared, shared_.begin());
  }

  bool all_waited() const {
    return std::all_of(threads_.begin(), threads_.begin() + count_,
                       [](const Thread& one) { return one.waited; });
  }

  void barrier() { leave(State::kAtBarrier); }

  // What all lanes of the warp have brought, by their number, until the next but one of these calls.
  const Brought* exchange(const Brought& mine) {
    const auto number = static_cast<unsigned>(current_ - threads_.data());
    Warp& warp = warps_[number / kWarp];
    const uint64_t exchange = warp.exchanges;
    warp.values[exchange % 2][number % kWarp] = mine;
    if (++warp.arrived == kWarp) {
      warp.arrived = 0;
      ++warp.exchanges;
    } else {
      current_->exchange = exchange;
      leave(State::kAtShuffle);
    }
    return warp.values[exchange % 2];
  }

  unsigned lane() const { return static_cast<unsigned>(current_ - threads_.data()) % kWarp; }
  void* dynamic_shared_memory() { return dynamic_.data(); }

  // Nothing is there before somebody waits for it.
  void begin_copy(const Copy& copy) {
    std::memset(copy.to, kRubbish, copy.bytes);
    current_->copies.back().push_back(copy);
  }
  void commit_copies() { current_->copies.emplace_back(); }
  void wait_for_copies(size_t prior) {
    auto& groups = current_->copies;
    for (; groups.size() > prior + 1; groups.pop_front()) {
      for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }

  void wait_for_kernels_before() {
    current_->waited = true;
    if (!kernels_before_done_) leave(State::kAtKernelsBefore);
  }

 private:
  // What all blocks share is this one's now.
  void enter() {
    running = this;
    gridDim = shape_.grid;
    blockDim = shape_.block;
    blockIdx = index_;
    std::copy(shared_.begin(), shared_.end(), __start_emulated_shared);
  }

  static uint64_t draw() { return (draws = draws * 6364136223846793005u + 1442695040888963407u) >> 33; }

  // A step by which every one of `count` is met once: any odd one where they are a power of two.
  unsigned stride(unsigned count) {
    if (count < 2) return 0;
    return (count & (count - 1)) == 0 ? (draw() | 1) % count : draw() % 2 == 0 ? 1 : count - 1;
  }

  // Lets the warp's threads run that can, each until it waits; how many did.
  unsigned run_warp(unsigned number, unsigned threads) {
    const unsigned begin = number * kWarp, lanes = std::min(kWarp, threads - begin);
    unsigned ran = 0, at = draw() % lanes;
    const unsigned step = stride(lanes);
    for (unsigned i = 0; i < lanes; ++i, at = (at + step) % lanes) {
      Thread& thread = threads_[begin + at];
      const bool exchanged = thread.state == State::kAtShuffle && warps_[number].exchanges != thread.exchange;
      const bool freed = thread.state == State::kAtKernelsBefore && kernels_before_done_;
      if (thread.state != State::kReady && !exchanged && !freed) continue;
      resume(thread);
      ++ran;
      if (thread.state == State::kFinished) ++finished_;
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
      thread.waited = false;
      thread.copies.assign(1, {});
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
    Block& block = *running;
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

  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Thread* current_ = nullptr;
  jmp_buf scheduler_;
  const std::function<void()>* body_ = nullptr;
  struct alignas(64) Line {
    char bytes[64];
  };

  Shape shape_;
  uint3 index_{};
  std::vector<Line> dynamic_;  // shared memory that the launch decided on, and a little more that it did not
  unsigned count_ = 0, finished_ = 0;
  bool kernels_before_done_ = true;
  std::vector<char> shared_;  // while another block runs
};

namespace {

// Blocks whose threads' stacks are there already.
std::vector<std::unique_ptr<Block>>& idle_blocks() {
  static auto* const idle = new std::vector<std::unique_ptr<Block>>;
  return *idle;
}
std::unique_ptr<Block> take_block() {
  if (idle_blocks().empty()) return std::make_unique<Block>();
  std::unique_ptr<Block> block = std::move(idle_blocks().back());
  idle_blocks().pop_back();
  return block;
}

}  // namespace

Grid::Grid(const Shape& shape, std::function<void()> body, bool early)
    : shape_(shape),
      body_(std::move(body)),
      early_(early),
      blocks_(uint64_t{shape.grid.x} * shape.grid.y * shape.grid.z) {}

Grid::~Grid() = default;

uint3 Grid::index(uint64_t number) const {
  const dim3 grid = shape_.grid;
  return {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
          static_cast<unsigned>(number / grid.x / grid.y)};
}

void Grid::start() {
  if (started_) return;
  started_ = take_block();
  started_number_ = draws % blocks_;
  started_->begin(shape_, index(started_number_), body_);
  started_->run(false);
}

void Grid::run() {
  static uint64_t launches = 0;
  const bool backwards = ++launches % 2 == 0;
  // What goes wrong leaves threads behind: its block is not used again.
  for (uint64_t i = 0; i < blocks_; ++i) {
    const uint64_t number = backwards ? blocks_ - 1 - i : i;
    std::unique_ptr<Block> block;
    if (started_ && number == started_number_) {
      block = std::move(started_);
    } else {
      block = take_block();
      block->begin(shape_, index(number), body_);
    }
    block->run(true);
    if (early_ && !block->all_waited()) {
      throw std::runtime_error(
          "a kernel that may start early has threads that never wait for those before it");
    }
    idle_blocks().push_back(std::move(block));
  }
}

}  // namespace emulated_cuda

void __syncthreads() { emulated_cuda::running->barrier(); }

using emulated_cuda::Brought;
using emulated_cuda::running;

namespace emulated_cuda {

const Brought* exchange(const Brought& mine) {
  if (blockDim.x * blockDim.y * blockDim.z % kWarp != 0) {
    throw std::logic_error("only whole warps are emulated");
  }
  return running->exchange(mine);
}
unsigned lane() { return running->lane(); }
void* dynamic_shared_memory() { return running->dynamic_shared_memory(); }

}  // namespace emulated_cuda

static void require_all(uint32_t mask) {
  if (mask != 0xFFFFFFFFu) throw std::logic_error("only whole warps are emulated");
}

uint32_t __shfl_xor_sync(uint32_t mask, uint32_t value, int lane_mask) {
  require_all(mask);
  return emulated_cuda::exchange({value})[emulated_cuda::lane() ^ lane_mask][0];
}

float __shfl_sync(uint32_t mask, float value, int from) {
  require_all(mask);
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = emulated_cuda::exchange({bits})[from][0];
  memcpy(&value, &bits, sizeof value);
  return value;
}

void __syncwarp() { emulated_cuda::exchange({}); }

void cudaGridDependencySynchronize() { running->wait_for_kernels_before(); }

void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  const auto places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if ((bytes != 4 && bytes != 8 && bytes != 16) || places % bytes != 0) {
    throw std::logic_error("a copy into shared memory of so many bytes, or not from and to whole ones");
  }
  running->begin_copy({to, from, bytes});
}
void __pipeline_commit() { running->commit_copies(); }
void __pipeline_wait_prior(size_t prior) { running->wait_for_copies(prior); }
