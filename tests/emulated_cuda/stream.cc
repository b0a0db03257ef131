#include "stream.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "launch.h"
#include "memory.h"

using emulated_cuda::Work;
using Lock = std::lock_guard<std::recursive_mutex>;

struct CUgraph_st {
  std::vector<Work> work;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<Work>> work;
};

struct CUstream_st {
  std::deque<Work> waiting;
  uint64_t queued = 0, done = 0;
  // While it is recorded:
  CUgraph_st* recording = nullptr;
  cudaStreamCaptureMode mode{};
  std::thread::id recorder;
  bool spoilt = false;
};

struct CUevent_st {
  CUstream_st* stream = nullptr;
  uint64_t place = 0;                                               // of the stream's work, that it marks
  std::shared_ptr<double> reached = std::make_shared<double>(0.0);  // milliseconds
};

namespace emulated_cuda {

namespace {

std::set<CUstream_st*>& streams() {
  static auto* const all = new std::set<CUstream_st*>;
  return *all;
}
std::set<const void*>& loaded_kernels() {
  static auto* const all = new std::set<const void*>;
  return *all;
}
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
thread_local cudaError_t last_error = cudaSuccess;
bool idle = false;  // kernels do nothing
uint64_t launched = 0;
Order order;                       // of the work that is being done
cudaError_t broken = cudaSuccess;  // from the first kernel that failed on, as with a GPU

// Shared memory that launches of a kernel may decide on.
std::map<const void*, size_t>& shared_limits() {
  static auto* const all = new std::map<const void*, size_t>;
  return *all;
}
size_t shared_limit(const void* kernel) {
  constexpr size_t kUsual = 48 << 10;
  const auto found = shared_limits().find(kernel);
  return found == shared_limits().end() ? kUsual : found->second;
}

// What needs a kernel first loads it, which is a call that a recording does not allow.
bool load(const void* kernel) { return !loaded_kernels().insert(kernel).second || may_call_unsafe(); }

// A stream, or for null the default one, which is always there.
CUstream_st* actual(CUstream_st* stream) {
  static auto* const usual = [] {
    auto* const made = new CUstream_st;
    streams().insert(made);
    return made;
  }();
  return stream == nullptr ? usual : stream;
}

bool known(CUstream_st* stream) { return streams().count(stream) > 0; }

// Does waiting[first]. Before its turn, whatever of the work behind it may start early does: the further that
// comes, the more shows.
template <typename Queue>
void do_first(const Queue& waiting, size_t first = 0) {
  constexpr size_t kFurthest = 3;
  const Work& work = waiting[first];
  const auto early = [](const Work& one) { return one.kernel != nullptr && one.kernel->early(); };
  ++order.number;
  if (!early(work)) order.last_in_turn = order.number;
  Order later = order;
  later.number += work.inside;
  for (size_t i = first + 1; i < waiting.size() && i <= first + kFurthest && early(waiting[i]) && !idle;
       ++i) {
    ++later.number;
    waiting[i].kernel->start(later);
  }
  if (work.kernel == nullptr) {
    if (!idle || !work.computes) work.run();
  } else if (!idle) {
    work.kernel->run(order);
  }
}

// Runs the stream's work up to a place. Order between streams is what events make it, and no more.
void run_until(CUstream_st* stream, uint64_t place) {
  const Memory::Open open;
  while (stream->done < place && !stream->waiting.empty()) {
    try {
      if (broken == cudaSuccess) do_first(stream->waiting);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "emulated GPU: %s\n", error.what());
      broken = cudaErrorLaunchFailure;
    }
    stream->waiting.pop_front();
    ++stream->done;
  }
}

cudaError_t wait_for(CUstream_st* stream, uint64_t place) {
  if (stream->recording != nullptr) {
    stream->spoilt = true;
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (!may_call_unsafe()) return fail(cudaErrorStreamCaptureUnsupported);
  run_until(stream, place);
  return broken == cudaSuccess ? cudaSuccess : fail(broken);
}

double now() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(since).count();
}

}  // namespace

cudaError_t fail(cudaError_t error) {
  last_error = error;
  return error;
}

bool may_call_unsafe() {
  bool allowed = true;
  for (CUstream_st* const stream : streams()) {
    if (stream->recording == nullptr || thread_mode == cudaStreamCaptureModeRelaxed) continue;
    const bool own = stream->recorder == std::this_thread::get_id();
    const bool forbidden =
        own ? stream->mode != cudaStreamCaptureModeRelaxed
            : stream->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal;
    if (forbidden) {
      stream->spoilt = true;
      allowed = false;
    }
  }
  return allowed;
}

bool is_recorded(cudaStream_t stream) { return known(stream) && stream->recording != nullptr; }

void finish_all() {
  for (CUstream_st* const stream : streams()) run_until(stream, stream->queued);
}

cudaError_t enqueue(cudaStream_t stream, Work work) {
  stream = actual(stream);
  if (!known(stream)) return fail(cudaErrorInvalidValue);
  if (stream->recording != nullptr) {
    stream->recording->work.push_back(std::move(work));
    return cudaSuccess;
  }
  stream->waiting.push_back(std::move(work));
  ++stream->queued;
  if (Memory::one().shared()) run_until(stream, stream->queued);
  return broken == cudaSuccess ? cudaSuccess : fail(broken);
}

void set_idle(bool set) { idle = set; }
uint64_t launches() { return launched; }

cudaError_t launch(const Shape& shape, cudaStream_t stream, bool early, const void* kernel,
                   std::function<void()> body) {
  const Lock lock(gpu());
  const dim3 grid = shape.grid, block = shape.block;
  const bool fits = grid.x >= 1 && grid.y >= 1 && grid.z >= 1 && grid.x < 1u << 31 && grid.y < 1u << 16 &&
                    grid.z < 1u << 16 && block.x >= 1 && block.y >= 1 && block.z >= 1 &&
                    uint64_t{block.x} * block.y * block.z <= 1024;
  if (!fits) return fail(cudaErrorInvalidConfiguration);
  if (!known(actual(stream))) return fail(cudaErrorInvalidValue);
  if (!on_first_gpu()) return fail(cudaErrorInvalidResourceHandle);
  if (shape.shared_bytes > shared_limit(kernel)) return fail(cudaErrorInvalidValue);
  if (!load(kernel)) return fail(cudaErrorStreamCaptureUnsupported);
  ++launched;
  return enqueue(stream, {nullptr, std::make_shared<Grid>(shape, std::move(body), early)});
}

}  // namespace emulated_cuda

using emulated_cuda::enqueue;
using emulated_cuda::fail;
using emulated_cuda::gpu;
using emulated_cuda::Kind;
using emulated_cuda::Memory;

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  const Lock lock(gpu());
  if (!emulated_cuda::load(kernel)) return fail(cudaErrorStreamCaptureUnsupported);
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || value > emulated_cuda::kMostSharedBytes) return fail(cudaErrorInvalidValue);
    emulated_cuda::shared_limits()[kernel] = static_cast<size_t>(value);
  }
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(emulated_cuda::last_error, emulated_cuda::broken); }

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  const Lock lock(gpu());
  if (!emulated_cuda::may_call_unsafe()) return fail(cudaErrorStreamCaptureUnsupported);
  if (!emulated_cuda::on_first_gpu()) return fail(cudaErrorInvalidDevice);
  *stream = new CUstream_st;
  emulated_cuda::streams().insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  const Lock lock(gpu());
  if (!emulated_cuda::known(stream)) return fail(cudaErrorInvalidValue);
  emulated_cuda::run_until(stream, stream->queued);
  emulated_cuda::streams().erase(stream);
  delete stream->recording;
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  const Lock lock(gpu());
  if (reinterpret_cast<uintptr_t>(stream) <= 2) {
    if (!emulated_cuda::on_first_gpu()) return cudaSuccess;  // that of another GPU, where nothing is queued
    stream = emulated_cuda::actual(nullptr);
  }
  if (!emulated_cuda::known(stream)) return fail(cudaErrorInvalidValue);
  return emulated_cuda::wait_for(stream, stream->queued);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  const Lock lock(gpu());
  if (!emulated_cuda::known(stream)) return fail(cudaErrorInvalidValue);
  Memory& memory = Memory::one();
  const Kind source = memory.kind(from), target = memory.kind(to);
  const bool named = kind == cudaMemcpyDefault ||
                     (kind == cudaMemcpyHostToDevice ? target == Kind::kDevice && source != Kind::kDevice
                                                     : source == Kind::kDevice && target != Kind::kDevice);
  const bool inside = (source == Kind::kPageable || memory.holds(from, bytes)) &&
                      (target == Kind::kPageable || memory.holds(to, bytes));
  if (!named || !inside) return fail(cudaErrorInvalidValue);
  const bool pageable = source == Kind::kPageable || target == Kind::kPageable;
  if (pageable && stream->recording != nullptr) {  // replays would read or write whatever is there by then
    stream->spoilt = true;
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  if (source == Kind::kPageable) {  // read before the call returns
    const auto* const begin = static_cast<const char*>(from);
    return enqueue(stream, {[to, copy = std::make_shared<std::vector<char>>(begin, begin + bytes)] {
                     memcpy(to, copy->data(), copy->size());
                   }});
  }
  const cudaError_t status = enqueue(stream, {[to, from, bytes] { memmove(to, from, bytes); }});
  if (status == cudaSuccess && target == Kind::kPageable) {  // written before the call returns
    return emulated_cuda::wait_for(stream, stream->queued);
  }
  return status;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  const Lock lock(gpu());
  if (!Memory::one().holds(to, bytes)) return fail(cudaErrorInvalidValue);
  return enqueue(stream, {[to, value, bytes] { memset(to, value, bytes); }});
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new CUevent_st;
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const Lock lock(gpu());
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  const Lock lock(gpu());
  if (!emulated_cuda::known(stream)) return fail(cudaErrorInvalidValue);
  if (stream->recording != nullptr) {  // csrc/ marks what is behind its recordings
    stream->spoilt = true;
    return fail(cudaErrorStreamCaptureUnsupported);
  }
  const cudaError_t status =
      enqueue(stream, {[reached = event->reached] { *reached = emulated_cuda::now(); }});
  event->stream = stream;
  event->place = stream->queued;
  return status;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  const Lock lock(gpu());
  if (event->stream == nullptr || !emulated_cuda::known(event->stream)) return cudaSuccess;
  return emulated_cuda::wait_for(event->stream, event->place);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  const Lock lock(gpu());
  *milliseconds = static_cast<float>(*end->reached - *start->reached);
  return cudaSuccess;
}

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, emulated_cuda::thread_mode);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  const Lock lock(gpu());
  if (!emulated_cuda::known(stream) || stream->recording != nullptr) return fail(cudaErrorInvalidValue);
  stream->recording = new CUgraph_st;
  stream->mode = mode;
  stream->recorder = std::this_thread::get_id();
  stream->spoilt = false;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const Lock lock(gpu());
  *graph = nullptr;
  if (!emulated_cuda::known(stream) || stream->recording == nullptr) return fail(cudaErrorInvalidValue);
  CUgraph_st* const recorded = std::exchange(stream->recording, nullptr);
  if (stream->spoilt) {
    delete recorded;
    return fail(cudaErrorStreamCaptureInvalidated);
  }
  *graph = recorded;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = new CUgraphExec_st{std::make_shared<const std::vector<Work>>(graph->work)};
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  const Lock lock(gpu());
  const auto& recorded = executable->work;
  return enqueue(stream, {[recorded] {
                            for (size_t i = 0; i < recorded->size(); ++i) {
                              emulated_cuda::do_first(*recorded, i);
                            }
                          },
                          nullptr, false, static_cast<uint32_t>(recorded->size())});
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete executable;
  return cudaSuccess;
}
