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
#include <string>
#include <vector>

#include "cuda_pipeline_primitives.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern char __start_emulated_shared[], __stop_emulated_shared[];

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
  const void* place;  // of the code
};

struct Thread {
  jmp_buf place;
  ucontext_t birth;
  std::unique_ptr<char[]> stack;
  uint3 index;
  State state = State::kFinished;
  uint64_t exchange = 0;  // of its warp, that it waits for
  ThreadClock clock;
  std::deque<std::vector<Copy>> copies{1};  // under way, by commits; the last has had none yet
};

struct Warp {
  Brought values[2][kWarp];  // of this exchange and the one before, by turns
  unsigned arrived = 0;
  Together kind{};  // of this exchange
  uint64_t exchanges = 0;
};

}  // namespace

class Block {
 public:
  // early: its threads have to wait for the kernels before.
  void begin(const Shape& shape, uint32_t number, uint3 index, const std::function<void()>& body, Order order,
             bool early) {
    shape_ = shape;
    index_ = index;
    body_ = &body;
    clock_ = {};
    clock_.order = order;
    clock_.number = number;
    clock_.blocks = shape.grid.x * shape.grid.y * shape.grid.z;
    count_ = shape.block.x * shape.block.y * shape.block.z;
    finished_ = 0;
    dynamic_.assign((shared_memory_bytes() + sizeof(Line) - 1) / sizeof(Line) + 1, Line{});
    std::memset(dynamic_.data(), kRubbish, dynamic_.size() * sizeof(Line));
    std::fill(__start_emulated_shared, __stop_emulated_shared, static_cast<char>(kRubbish));
    clock_.shared[0] = __start_emulated_shared;
    clock_.shared[1] = __stop_emulated_shared;
    clock_.dynamic[0] = dynamic_.data()->bytes;
    clock_.dynamic[1] = clock_.dynamic[0] + shared_memory_bytes();
    enter();
    prepare(count_, early);
  }

  // Lets the threads run until all have finished, or, before the kernels in front of them are done, wait for
  // those.
  void run(bool kernels_before_done) {
    enter();
    std::copy(put_away_.begin(), put_away_.end(), __start_emulated_shared);
    put_away_.clear();
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
      const std::string report = accesses::take_report();
      if (!report.empty()) throw std::runtime_error(report);
      if (!failure_.empty()) throw std::runtime_error(failure_);
      if (moved) continue;
      unsigned at_barrier = 0, held = 0;
      for (unsigned i = 0; i < count_; ++i) {
        at_barrier += threads_[i].state == State::kAtBarrier;
        held += threads_[i].state == State::kAtKernelsBefore;
      }
      if (held > 0) {
        put_away_.assign(__start_emulated_shared, __stop_emulated_shared);
        return;
      }
      if (at_barrier < count_) {
        throw std::runtime_error(finished_ > 0 ? "threads returned while others wait for them"
                                               : "threads wait for each other at different places");
      }
      for (unsigned i = 0; i < count_; ++i) threads_[i].state = State::kReady;
    }
    const auto* const end = reinterpret_cast<const unsigned char*>(dynamic_.data() + dynamic_.size());
    if (std::any_of(reinterpret_cast<const unsigned char*>(shared_memory()) + shared_memory_bytes(), end,
                    [](unsigned char byte) { return byte != kRubbish; })) {
      throw std::runtime_error("a kernel wrote behind its shared memory");
    }
  }

  bool all_waited() const {
    return std::all_of(threads_.begin(), threads_.begin() + count_,
                       [](const Thread& one) { return one.clock.waited; });
  }

  void barrier() {
    leave(State::kAtBarrier);
    ++current_->clock.barriers;
  }
  void warp_barrier() {
    exchange(Together::kBarrier, {});
    ++current_->clock.warp_barriers;
  }

  // What all lanes of the warp have brought, by their number, until the next but one of these calls.
  const Brought* exchange(Together kind, const Brought& mine) {
    const auto number = static_cast<unsigned>(current_ - threads_.data());
    Warp& warp = warps_[number / kWarp];
    if (warp.arrived == 0) warp.kind = kind;
    if (warp.kind != kind) throw std::logic_error("lanes of a warp meet at different instructions");
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
  char* shared_memory() { return dynamic_.data()->bytes; }
  size_t shared_memory_bytes() const { return shape_.declared_bytes + shape_.shared_bytes; }
  void* dynamic_shared_memory() { return shared_memory() + shape_.declared_bytes; }

  // Nothing is there before somebody waits for it.
  void begin_copy(const Copy& copy) {
    accesses::check(accesses::Kind::kRead, copy.from, copy.bytes, copy.place);
    accesses::check(accesses::Kind::kWrite, copy.to, copy.bytes, copy.place);
    std::memset(copy.to, kRubbish, copy.bytes);
    current_->copies.back().push_back(copy);
  }
  void commit_copies() { current_->copies.emplace_back(); }
  void wait_for_copies(size_t prior) {
    auto& groups = current_->copies;
    for (; groups.size() > prior + 1; groups.pop_front()) {
      for (const Copy& copy : groups.front()) {
        accesses::check(accesses::Kind::kWrite, copy.to, copy.bytes, copy.place);
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
  }

  void wait_for_kernels_before() {
    if (!kernels_before_done_) leave(State::kAtKernelsBefore);
    current_->clock.waited = true;
  }

 private:
  // What all blocks share is this one's now.
  void enter() {
    running = this;
    gridDim = shape_.grid;
    blockDim = shape_.block;
    blockIdx = index_;
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

  void prepare(unsigned threads, bool early) {
    if (threads_.size() < threads) threads_ = std::vector<Thread>(threads);
    warps_.assign((threads + kWarp - 1) / kWarp, Warp{});
    for (unsigned i = 0; i < threads; ++i) {
      Thread& thread = threads_[i];
      const unsigned x = i % blockDim.x, rest = i / blockDim.x;
      thread.index = {x, rest % blockDim.y, rest / blockDim.y};
      thread.state = State::kReady;
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
      thread.clock = {};
      thread.clock.block = &clock_;
      thread.clock.number = static_cast<uint16_t>(i);
      thread.clock.waited = !early;
      thread.clock.stack[0] = thread.stack.get();
      thread.clock.stack[1] = thread.stack.get() + kStackBytes;
    }
  }

  // A thread's life: born, it waits for its first body, and after each for the next.
  static void live() {
    Block& block = *running;
    Thread* const self = block.current_;
    for (;;) {
      if (_setjmp(self->place) == 0) _longjmp(block.scheduler_, 1);
      try {
        (*block.body_)();
      } catch (const std::exception& error) {
        if (block.failure_.empty()) block.failure_ = error.what();
      }
      self->state = State::kFinished;
    }
  }

  void resume(Thread& thread) {
    current_ = &thread;
    thread.state = State::kReady;
    threadIdx = thread.index;
    accesses::running = &thread.clock;
    if (_setjmp(scheduler_) == 0) _longjmp(thread.place, 1);
    accesses::running = nullptr;
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
  BlockClock clock_;
  std::vector<Line> dynamic_;  // shared memory that is no variable of C++, and a little more
  unsigned count_ = 0, finished_ = 0;
  bool kernels_before_done_ = true;
  std::string failure_;         // what a thread ended with
  std::vector<char> put_away_;  // shared memory, while other blocks run
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

void Grid::begin(Block* block, uint64_t number, Order order) const {
  const dim3 grid = shape_.grid;
  const uint3 index{static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                    static_cast<unsigned>(number / grid.x / grid.y)};
  block->begin(shape_, static_cast<uint32_t>(number), index, body_, order, early_);
}

void Grid::start(Order order) {
  if (started_) return;
  started_ = take_block();
  started_number_ = draws % blocks_;
  begin(started_.get(), started_number_, order);
  started_->run(false);
}

void Grid::run(Order order) {
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
      begin(block.get(), number, order);
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
namespace accesses = emulated_cuda::accesses;

namespace emulated_cuda {

const Brought* exchange(Together kind, const Brought& mine) {
  if (blockDim.x * blockDim.y * blockDim.z % kWarp != 0) {
    throw std::logic_error("only whole warps are emulated");
  }
  return running->exchange(kind, mine);
}
unsigned lane() { return running->lane(); }
void* dynamic_shared_memory() { return running->dynamic_shared_memory(); }
char* shared_memory() { return running->shared_memory(); }
size_t shared_memory_bytes() { return running->shared_memory_bytes(); }

}  // namespace emulated_cuda

static void require_all(uint32_t mask) {
  if (mask != 0xFFFFFFFFu) throw std::logic_error("only whole warps are emulated");
}

uint32_t __shfl_xor_sync(uint32_t mask, uint32_t value, int lane_mask) {
  require_all(mask);
  return emulated_cuda::exchange(emulated_cuda::Together::kShuffle,
                                 {value})[emulated_cuda::lane() ^ lane_mask][0];
}

float __shfl_sync(uint32_t mask, float value, int from) {
  require_all(mask);
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  bits = emulated_cuda::exchange(emulated_cuda::Together::kShuffle, {bits})[from][0];
  memcpy(&value, &bits, sizeof value);
  return value;
}

void __syncwarp() {
  require_all(0xFFFFFFFFu);
  running->warp_barrier();
}

// Only one thread runs at a time, and is exchanged for another at what waits only.
template <typename Number>
static Number add_atomically(Number* target, Number value, const void* place,
                             accesses::Kind kind = accesses::Kind::kAtomic) {
  accesses::check(kind, target, sizeof(Number), place);
  const Number before = *target;
  *target += value;
  return before;
}
unsigned long long atomicAdd(unsigned long long* target, unsigned long long value) {
  return add_atomically(target, value, __builtin_return_address(0));
}
unsigned atomicAdd(unsigned* target, unsigned value) {
  return add_atomically(target, value, __builtin_return_address(0));
}
int atomicAdd(int* target, int value) { return add_atomically(target, value, __builtin_return_address(0)); }
int32_t emulated_cuda::count_up(int32_t* counter) {
  return add_atomically(counter, 1, __builtin_return_address(0), accesses::Kind::kAcquireRelease);
}

void cudaGridDependencySynchronize() { running->wait_for_kernels_before(); }

void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  const auto places = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if ((bytes != 4 && bytes != 8 && bytes != 16) || places % bytes != 0) {
    throw std::logic_error("a copy into shared memory of so many bytes, or not from and to whole ones");
  }
  running->begin_copy({to, from, bytes, __builtin_return_address(0)});
}
void __pipeline_commit() { running->commit_copies(); }
void __pipeline_wait_prior(size_t prior) { running->wait_for_copies(prior); }
