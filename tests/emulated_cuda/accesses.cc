#include "accesses.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <unordered_map>
#include <utility>

#include "memory.h"

namespace emulated_cuda::accesses {

ThreadClock* running = nullptr;

namespace {

constexpr uint32_t kManyBlocks = ~0u;
constexpr uint16_t kMany = 0xFFFF, kWarp = 32;
constexpr size_t kPageBytes = 4096;

// Who touched a place last, of those whom nothing orders yet; several threads where it was several at a time.
struct Access {
  uint32_t launch = 0;  // 0: nobody
  uint32_t block = 0, barriers = 0, warp_barriers = 0;
  uint16_t warp = 0, thread = 0;
  bool atomic = false;
  const void* place = nullptr;  // of the code
};
struct alignas(64) Cell {
  Access write, read;
};

// The cells of a page of memory: one for four bytes, and for fewer once somebody touches fewer. Of the
// device's memory no kernel touches more than [begin, end).
struct Page {
  const char *begin = nullptr, *end = nullptr;
  size_t unit = 4;
  std::vector<Cell> cells = std::vector<Cell>(kPageBytes / 4);

  void split(size_t smaller) {
    std::vector<Cell> finer(kPageBytes / smaller);
    for (size_t i = 0; i < finer.size(); ++i) finer[i] = cells[i * smaller / unit];
    cells = std::move(finer);
    unit = smaller;
  }
};

std::unordered_map<uintptr_t, std::unique_ptr<Page>>& pages() {
  static auto* const all = new std::unordered_map<uintptr_t, std::unique_ptr<Page>>;
  return *all;
}
struct Recent {
  uintptr_t number = 0;
  Page* page = nullptr;
};
std::array<Recent, 256> recent;

Page& page_of(uintptr_t number) {
  Recent& last = recent[number % recent.size()];
  if (last.page == nullptr || last.number != number) {
    std::unique_ptr<Page>& page = pages()[number];
    if (page == nullptr) {
      page = std::make_unique<Page>();
      Memory::one().bounds(reinterpret_cast<const void*>(number * kPageBytes), &page->begin, &page->end);
    }
    last = {number, page.get()};
  }
  return *last.page;
}

std::string report;

// The line, and those that called it where it was inlined, as far as binutils can tell.
std::string name_of(const void* place) {
  Dl_info info{};
  dladdr(place, &info);
  const auto offset = static_cast<const char*>(place) - static_cast<const char*>(info.dli_fbase);
  char line[512] = "";
  std::snprintf(line, sizeof line, "addr2line -ispe '%s' %#tx 2>/dev/null", info.dli_fname, offset - 1);
  std::string name;
  if (FILE* const tool = popen(line, "r")) {
    while (std::fgets(line, sizeof line, tool) != nullptr) {
      std::string one(line, std::strcspn(line, "\n"));
      const size_t caller = one.find("(inlined by) ");
      name += caller == std::string::npos ? one : " in " + one.substr(caller + 13);
    }
    pclose(tool);
  }
  return name.empty() ? "code at " + std::to_string(offset) : name;
}

std::string name_of(const Access& one) {
  std::string name =
      one.thread == kMany ? one.warp == kMany ? "several warps" : "several lanes of warp " : "thread ";
  if (one.warp != kMany) name += std::to_string(one.thread == kMany ? one.warp : one.thread);
  name += one.block == kManyBlocks ? " of several blocks" : " of block " + std::to_string(one.block);
  return name + " (" + name_of(one.place) + ")";
}

Access access_of(const ThreadClock& thread, Kind kind, const void* place) {
  Access one;
  one.launch = thread.block->order.number;
  one.block = thread.block->number;
  one.barriers = thread.barriers;
  one.warp_barriers = thread.warp_barriers;
  one.thread = thread.number;
  one.warp = thread.number / kWarp;
  one.atomic = kind == Kind::kAtomic || kind == Kind::kAcquireRelease;
  one.place = place;
  return one;
}

// Whether what another block, or every other one, did has been acquired by the thread's block.
bool acquired(const Access& before, const ThreadClock& now) {
  const BlockClock& block = *now.block;
  const bool seen = now.barriers > block.acquired_at || now.number == block.acquired_by;
  if (block.acquired.empty() || !seen) return false;
  if (before.block != kManyBlocks) return block.acquired[before.block] > before.barriers;
  for (uint32_t other = 0; other < block.acquired.size(); ++other) {
    const uint32_t passed = other == block.number ? now.barriers : block.acquired[other];
    if (passed <= before.barriers) return false;
  }
  return true;
}

// Whether `before` is done, and seen, by the time that the thread is where it is.
inline bool ordered(const Access& before, const ThreadClock& now) {
  const Order order = now.block->order;
  if (before.launch > order.number) return false;  // it ran ahead
  if (before.launch < order.number) return now.waited || before.launch < order.last_in_turn;
  if (before.block != now.block->number) return acquired(before, now);
  if (before.barriers < now.barriers) return true;
  if (before.warp != now.number / kWarp) return false;
  return before.warp_barriers < now.warp_barriers || before.thread == now.number;
}

// Adds `mine` to those who touched a place and are not ordered among each other.
void add(Access* all, const Access& mine, const ThreadClock& now) {
  if (all->launch > mine.launch) return;
  if (all->launch < mine.launch || ordered(*all, now)) {
    *all = mine;
    return;
  }
  if (all->block != mine.block) {
    all->block = kManyBlocks;
    all->warp = all->thread = kMany;
  } else if (all->warp != mine.warp) {
    all->warp = all->thread = kMany;
  } else {
    all->thread = kMany;
  }
  all->barriers = std::max(all->barriers, mine.barriers);
}

bool inside(const char* address, const char* const (&range)[2]) {
  return address >= range[0] && address < range[1];
}

inline void visit(Cell* cell, Kind kind, const Access& mine, const ThreadClock& now, bool shared) {
  // Shared memory lies where another block's did.
  const auto others = [&](const Access& one) {
    return shared && (one.launch != mine.launch || one.block != mine.block);
  };
  if (others(cell->write)) cell->write = {};
  if (others(cell->read)) cell->read = {};

  if (shared && kind != Kind::kWrite && cell->write.launch == 0 && report.empty()) {
    report = name_of(mine) + " reads shared memory that nobody has written";
  }
  // Most often: nobody but kernels before has been here.
  if (kind == Kind::kRead && now.waited && cell->write.launch < mine.launch &&
      cell->read.launch < mine.launch) {
    cell->read = mine;
    return;
  }
  const auto disordered = [&](const Access& before) { return before.launch != 0 && !ordered(before, now); };
  const Access* other = nullptr;
  if (!(mine.atomic && cell->write.atomic) && disordered(cell->write)) other = &cell->write;
  if (kind != Kind::kRead && disordered(cell->read)) other = &cell->read;
  if (other != nullptr && report.empty()) {
    const char* const did = other == &cell->read ? " read, " : " wrote, ";
    report = "a race in " + std::string(shared ? "shared" : "global") + " memory: of what " +
             name_of(*other) + did + name_of(mine) + (kind == Kind::kRead ? " reads" : " writes") +
             ", with nothing that orders them";
  }
  if (kind == Kind::kRead) {
    add(&cell->read, mine, now);
  } else if (kind == Kind::kAtomic && cell->write.atomic) {
    add(&cell->write, mine, now);
    cell->read = {};
  } else {
    *cell = {mine, {}};
  }
}

// By counters, of one launch: what has been released there.
struct Counter {
  uint32_t launch = 0;
  std::vector<uint32_t> released;
};
std::map<const void*, Counter>& counters() {
  static auto* const all = new std::map<const void*, Counter>;
  return *all;
}

void join(std::vector<uint32_t>* mine, const std::vector<uint32_t>& other) {
  mine->resize(std::max(mine->size(), other.size()));
  for (size_t i = 0; i < other.size(); ++i) (*mine)[i] = std::max((*mine)[i], other[i]);
}

void acquire_and_release(const void* address, const ThreadClock& now) {
  BlockClock& block = *now.block;
  Counter& counter = counters()[address];
  if (counter.launch != block.order.number) {
    counter = {block.order.number, std::vector<uint32_t>(block.blocks)};
  }
  join(&block.acquired, counter.released);
  block.acquired_at = now.barriers;
  block.acquired_by = now.number;
  join(&counter.released, block.acquired);
  counter.released[block.number] = now.barriers;
}

}  // namespace

void check(Kind kind, const void* address, size_t bytes, const void* place) {
  if (running == nullptr || bytes == 0) return;
  const ThreadClock& now = *running;
  const auto* const first = static_cast<const char*>(address);
  if (inside(first, now.stack)) return;
  const bool shared = inside(first, now.block->shared) || inside(first, now.block->dynamic);
  const Access mine = access_of(now, kind, place);
  if (kind == Kind::kAcquireRelease) acquire_and_release(address, now);
  for (auto at = reinterpret_cast<uintptr_t>(address), end = at + bytes; at < end;) {
    Page& page = page_of(at / kPageBytes);
    const bool outside = page.end != nullptr && (first < page.begin || first + bytes > page.end);
    if (outside && report.empty()) report = name_of(mine) + " reads or writes outside of its memory";
    const size_t begin = at % kPageBytes, length = std::min(end - at, kPageBytes - begin);
    while ((begin | length) % page.unit != 0) page.split(page.unit / 2);
    for (size_t i = begin / page.unit; i < (begin + length) / page.unit; ++i) {
      visit(&page.cells[i], kind, mine, now, shared);
    }
    at += length;
  }
}

std::string take_report() { return std::exchange(report, {}); }

void forget(const void* begin, size_t bytes) {
  const auto first = reinterpret_cast<uintptr_t>(begin);
  for (uintptr_t number = first / kPageBytes; number * kPageBytes < first + bytes; ++number) {
    pages().erase(number);
  }
  recent.fill({});
}

}  // namespace emulated_cuda::accesses

// What the compiler calls (-fsanitize=thread) before each load and store.

using emulated_cuda::accesses::Kind;

#define QWEN2VL_ACCESS(name, kind, bytes)                                              \
  void name(void* address) {                                                           \
    emulated_cuda::accesses::check(kind, address, bytes, __builtin_return_address(0)); \
  }
#define QWEN2VL_ACCESSES(bytes)                                    \
  QWEN2VL_ACCESS(__tsan_read##bytes, Kind::kRead, bytes)           \
  QWEN2VL_ACCESS(__tsan_write##bytes, Kind::kWrite, bytes)         \
  QWEN2VL_ACCESS(__tsan_unaligned_read##bytes, Kind::kRead, bytes) \
  QWEN2VL_ACCESS(__tsan_unaligned_write##bytes, Kind::kWrite, bytes)

extern "C" {
QWEN2VL_ACCESSES(1)
QWEN2VL_ACCESSES(2)
QWEN2VL_ACCESSES(4)
QWEN2VL_ACCESSES(8)
QWEN2VL_ACCESSES(16)
void __tsan_read_range(void* address, size_t bytes) {
  emulated_cuda::accesses::check(Kind::kRead, address, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t bytes) {
  emulated_cuda::accesses::check(Kind::kWrite, address, bytes, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_vptr_update(void**, void*) {}
}
