// Kernels with a mistake each, and without it: what accesses.h claims to find, and what it must not report.

#include <cuda_pipeline_primitives.h>
#include <cuda_runtime.h>

#include <cstring>
#include <exception>
#include <iterator>
#include <mutex>
#include <string>

#include "memory.h"

namespace {

constexpr unsigned kThreads = 64, kWarp = 32;

// The device's memory. (Variables that begin as zeros are taken for shared memory: shared_memory.ld.)
int numbers[2 * kThreads] = {1};
unsigned char bytes[2 * kThreads] = {1};
int counter = 1;
int* allocated = numbers;  // kThreads + 1 of it; behind them lies what nobody may touch, and could

template <int>
int* shared_numbers() {  // in a template, as most kernels are
  __shared__ int memory[kThreads];
  return memory;
}

void barrier(bool wrong) {
  int* const shared = shared_numbers<0>();
  shared[threadIdx.x] = 0;
  __syncthreads();
  shared[threadIdx.x] = 1;
  if (!wrong) __syncthreads();
  numbers[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

void barrier_behind(bool wrong) {
  int* const shared = shared_numbers<1>();
  for (int round = 0; round < 2; ++round) {
    shared[threadIdx.x] = round;
    __syncthreads();
    numbers[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
    if (!wrong) __syncthreads();
  }
}

void shuffle_for_a_barrier(bool wrong) {
  int* const shared = shared_numbers<2>();
  shared[threadIdx.x] = 1;
  wrong ? static_cast<void>(__shfl_xor_sync(~0u, 0, 1)) : __syncwarp();
  numbers[threadIdx.x] = shared[threadIdx.x ^ 1];
}

void warp_barrier_for_a_blocks(bool wrong) {
  int* const shared = shared_numbers<3>();
  shared[threadIdx.x] = 0;
  __syncthreads();
  shared[threadIdx.x] = 1;
  wrong ? __syncwarp() : __syncthreads();
  numbers[threadIdx.x] = shared[threadIdx.x ^ kWarp];
}

void copy_of_another(bool wrong) {
  int* const shared = shared_numbers<4>();
  __pipeline_memcpy_async(&shared[threadIdx.x], &numbers[threadIdx.x], sizeof(int));
  __pipeline_commit();
  if (wrong) __syncwarp();
  __pipeline_wait_prior(0);
  if (!wrong) __syncwarp();
  numbers[kThreads + threadIdx.x] = shared[threadIdx.x ^ 1];
}

void copy_over_what_is_read(bool wrong) {
  int* const shared = shared_numbers<5>();
  shared[threadIdx.x] = 1;
  __syncwarp();
  numbers[kThreads + threadIdx.x] = shared[threadIdx.x ^ 1];
  if (!wrong) __syncwarp();
  __pipeline_memcpy_async(&shared[threadIdx.x], &numbers[threadIdx.x], sizeof(int));
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

void sum(bool wrong) {
  if (wrong) {
    numbers[0] += 1;
  } else {
    atomicAdd(&numbers[0], 1);
  }
}

void read_while_added(bool wrong) {
  atomicAdd(&numbers[0], 1);
  if (wrong && threadIdx.x == 3) numbers[1] = numbers[0];
}

void blocks(bool wrong) { numbers[wrong ? threadIdx.x : blockIdx.x * kThreads + threadIdx.x] = 1; }

void neighbours(bool wrong) {
  bytes[threadIdx.x] = 1;
  if (wrong) bytes[threadIdx.x + 1] = 1;
  numbers[threadIdx.x] = bytes[threadIdx.x];
}

void last_block(bool wrong) {
  __shared__ int before;
  numbers[blockIdx.x * kThreads + threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) before = wrong ? atomicAdd(&counter, 1) : emulated_cuda::count_up(&counter);
  __syncthreads();
  if (before == 0) return;
  numbers[threadIdx.x] += numbers[kThreads + threadIdx.x];
  if (threadIdx.x == 0) counter = 0;
}

void last_block_without_barrier(bool wrong) {
  __shared__ int before;
  numbers[blockIdx.x * kThreads + threadIdx.x] = 1;
  if (!wrong) __syncthreads();
  if (threadIdx.x == 0) before = emulated_cuda::count_up(&counter);
  __syncthreads();
  if (before == 1 && threadIdx.x < kWarp) numbers[threadIdx.x] += numbers[2 * kThreads - 1 - threadIdx.x];
  if (before == 1 && threadIdx.x == 0) counter = 0;
}

// The kernel in front of those that may start early: writes the first numbers, reads the second.
void in_front() { numbers[threadIdx.x] = numbers[kThreads + threadIdx.x]; }

void read_before_waiting(bool wrong) {
  const int early = wrong ? numbers[threadIdx.x] : 0;
  cudaGridDependencySynchronize();
  numbers[threadIdx.x] += early;
}

void write_before_waiting(bool wrong) {
  if (wrong) numbers[kThreads + threadIdx.x] = 1;
  cudaGridDependencySynchronize();
  numbers[kThreads + threadIdx.x] = 1;
}

void read_behind(bool wrong) { numbers[threadIdx.x] = allocated[threadIdx.x + (wrong ? 2 : 0)]; }

void read_in_front(bool wrong) { numbers[threadIdx.x] = (allocated - (wrong ? 1 : 0))[threadIdx.x]; }

void never_written(bool wrong) {
  int* const shared = shared_numbers<6>();
  if (!wrong || threadIdx.x > 0) shared[threadIdx.x] = 1;
  __syncthreads();
  numbers[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

void misaligned(bool wrong) {
  const auto* const pair =
      reinterpret_cast<const float2*>(reinterpret_cast<const float*>(numbers) + (wrong ? 1 : 0));
  numbers[kThreads + threadIdx.x] = __ldcg(pair).x > 0 ? 1 : 0;
}

void different_instructions(bool wrong) {
  if (wrong && threadIdx.x % 2 > 0) {
    __syncwarp();
  } else {
    __shfl_xor_sync(~0u, 0, 1);
  }
}

struct Example {
  const char* name;
  void (*kernel)(bool wrong);
  unsigned blocks = 1;
  bool early = false;
};
constexpr Example kExamples[] = {
    {"barrier", barrier},
    {"barrier behind", barrier_behind},
    {"shuffle for a barrier", shuffle_for_a_barrier},
    {"warp barrier for a block's", warp_barrier_for_a_blocks},
    {"copy of another", copy_of_another},
    {"copy over what is read", copy_over_what_is_read},
    {"sum", sum},
    {"read while added", read_while_added},
    {"blocks", blocks, 2},
    {"neighbours", neighbours},
    {"last block", last_block, 2},
    {"last block without barrier", last_block_without_barrier, 2},
    {"read before waiting", read_before_waiting, 1, true},
    {"write before waiting", write_before_waiting, 1, true},
    {"read behind", read_behind},
    {"read in front", read_in_front},
    {"never written", never_written},
    {"misaligned", misaligned},
    {"different instructions", different_instructions},
};

}  // namespace

extern "C" {

// The name of an example, null behind the last.
__attribute__((visibility("default"))) const char* emulated_cuda_example_name(size_t number) {
  return number < std::size(kExamples) ? kExamples[number].name : nullptr;
}

// Runs an example; what is found is written to `report`, of `capacity` bytes.
__attribute__((visibility("default"))) void emulated_cuda_example(size_t number, int wrong, char* report,
                                                                  size_t capacity) {
  using namespace emulated_cuda;
  static uint32_t launches = 1u << 30;  // behind whatever else ran
  const Example& example = kExamples[number];
  const Shape shape{{example.blocks, 1, 1}, {kThreads, 1, 1}};
  counter = 0;
  Memory& memory = Memory::one();
  const std::lock_guard<std::recursive_mutex> lock(gpu());
  allocated = static_cast<int*>(memory.allocate((kThreads + 1) * sizeof(int), Kind::kDevice));
  const Memory::Open open;
  const Order first{launches, launches}, second{launches + 1, example.early ? launches : launches + 1};
  launches += 2;
  std::string found;
  try {
    Grid front({{1, 1, 1}, {kThreads, 1, 1}}, in_front, false);
    Grid grid(shape, [&] { example.kernel(wrong != 0); }, example.early);
    if (example.early) grid.start(second);
    front.run(first);
    grid.run(second);
  } catch (const std::exception& error) {
    found = error.what();
  }
  memory.release(allocated, Kind::kDevice);
  std::strncpy(report, found.c_str(), capacity - 1);
}

}  // extern "C"
