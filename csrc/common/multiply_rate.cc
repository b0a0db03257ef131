#include "common/multiply_rate.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "common/error.h"
#include "common/instruction_set.h"

namespace qwen2vl {

namespace {

using Clock = std::chrono::steady_clock;

// Two threads may begin on one core, until the scheduler sees it: time enough, in parts of which one counts.
constexpr std::chrono::milliseconds kPart{20};
constexpr int kParts = 16;
constexpr int kChains = 12;   // of sums that do not wait for one another: latency times instructions a cycle
constexpr int kSteps = 2000;  // of one call: microseconds, which is what a part's edges are off by

struct Loop {
  void (*run)();   // kSteps steps of every chain
  int operations;  // of one chain's step
};

#ifdef __x86_64__

// In assembly, since a compiler moves sums of intrinsics from register to register, and to memory. Registers
// 12 and 13 are the factors: zeros, of which no arithmetic is slow.
// clang-format off
#define EACH_CHAIN(STEP) \
  STEP("0") STEP("1") STEP("2") STEP("3") STEP("4") STEP("5") \
  STEP("6") STEP("7") STEP("8") STEP("9") STEP("10") STEP("11")
// clang-format on
#define CLOBBERED                                                                                            \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
      "xmm13", "xmm14"
#define DEFINE_LOOP(NAME, CLEAR, STEP)                                                    \
  void NAME() {                                                                           \
    int64_t steps = kSteps;                                                               \
    asm volatile(EACH_CHAIN(CLEAR) CLEAR("12")                                            \
                     CLEAR("13") "1:\n" EACH_CHAIN(STEP) "dec %0\n jnz 1b\n vzeroupper\n" \
                 : "+r"(steps)                                                            \
                 :                                                                        \
                 : CLOBBERED, "cc");                                                      \
  }

#define CLEAR(N) "vpxor %%xmm" N ", %%xmm" N ", %%xmm" N "\n"
#define FLOAT_512(N) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" N "\n"
#define FLOAT_256(N) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" N "\n"
#define BYTES_512(N) "vpdpbusd %%zmm12, %%zmm13, %%zmm" N "\n"
// What products of bytes are without VNNI: pairs to 16 bits, ones times pairs of those to 32, a sum.
#define BYTES_256(N)                       \
  "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n" \
  "vpmaddwd %%ymm12, %%ymm14, %%ymm14\n"   \
  "vpaddd %%ymm14, %%ymm" N ", %%ymm" N "\n"

DEFINE_LOOP(float_512, CLEAR, FLOAT_512)
DEFINE_LOOP(float_256, CLEAR, FLOAT_256)
DEFINE_LOOP(bytes_512, CLEAR, BYTES_512)
DEFINE_LOOP(bytes_256, CLEAR, BYTES_256)

Loop loop(Factors factors) {
  const bool floats = factors == Factors::kFloat32;
  if (may_use(InstructionSet::kAvx512) && floats) return {float_512, 2 * 16};
  if (may_use_vnni() && !floats) return {bytes_512, 2 * 64};
  if (may_use(InstructionSet::kAvx2)) return floats ? Loop{float_256, 2 * 8} : Loop{bytes_256, 2 * 32};
  return {};
}

#else

Loop loop(Factors) { return {}; }

#endif

}  // namespace

double multiply_rate(Factors factors, int threads) {
  if (threads < 1) throw InputError("multiply_rate: " + std::to_string(threads) + " threads; take 1 or more");
  const Loop chosen = loop(factors);
  if (chosen.run == nullptr) return 0;
  std::vector<std::array<int64_t, kParts>> calls(threads);  // that began in each part, by thread
  const Clock::time_point begin = Clock::now();
  const auto work = [&](std::array<int64_t, kParts>& own) {
    for (int64_t part = 0; part < kParts; part = (Clock::now() - begin) / kPart) {
      ++own[part];
      chosen.run();
    }
  };
  std::vector<std::thread> others;
  others.reserve(threads - 1);
  try {
    while (others.size() + 1 < calls.size()) others.emplace_back(work, std::ref(calls[others.size() + 1]));
  } catch (const std::system_error&) {
    // No more threads to be had: the rate of those that are.
  }
  work(calls[0]);
  for (std::thread& other : others) other.join();
  int64_t most = 0;
  for (int part = 0; part < kParts; ++part) {
    int64_t sum = 0;
    for (const auto& own : calls) sum += own[part];
    most = std::max(most, sum);
  }
  const double operations = static_cast<double>(most) * kSteps * kChains * chosen.operations;
  return operations / std::chrono::duration<double>(kPart).count();
}

}  // namespace qwen2vl
