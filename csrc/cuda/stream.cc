#include "cuda/stream.h"

#include <cuda_runtime_api.h>

#include "cuda/error.h"
#include "cuda/gemm.h"
#include "cuda/ignore_other_recordings.h"
#include "cuda/on_device.h"
#include "cuda/workspace.h"

namespace qwen2vl::cuda {

Stream::Stream(int device) : device_(device) {
  const OnDevice on(device);
  const IgnoreOtherRecordings guard;
  check(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "creating a stream");
}

Stream::~Stream() {
  const IgnoreOtherRecordings guard;
  forget_products(handle_);
  forget_workspace(handle_);
  cudaStreamDestroy(handle_);
}

void Stream::synchronize() const {
  const IgnoreOtherRecordings guard;
  check(cudaStreamSynchronize(handle_), "running on the GPU");
}

void synchronize_stream(uintptr_t handle, int device) {
  const OnDevice on(device);
  const IgnoreOtherRecordings guard;
  check(cudaStreamSynchronize(reinterpret_cast<cudaStream_t>(handle)), "waiting for a frame's producer");
}

Event::~Event() {
  if (handle_ != nullptr) cudaEventDestroy(handle_);
}

void Event::record(const Stream& stream) {
  if (handle_ == nullptr) {  // on the stream's own GPU
    const IgnoreOtherRecordings guard;
    check(cudaEventCreateWithFlags(&handle_, timing_ ? cudaEventDefault : cudaEventDisableTiming),
          "creating an event");
  }
  check(cudaEventRecord(handle_, stream.handle()), "recording an event");
}

void Event::synchronize() const {
  if (handle_ == nullptr) return;
  const IgnoreOtherRecordings guard;
  check(cudaEventSynchronize(handle_), "running on the GPU");
}

float Event::milliseconds_since(const Event& start) const {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, start.handle_, handle_), "timing on the GPU");
  return milliseconds;
}

Graph::~Graph() {
  abandon();
  if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
}

void Graph::begin(const Stream& stream) {
  if (recording_ != nullptr) throw DeviceError("this graph is being recorded already");
  check(cudaStreamBeginCapture(stream.handle(), cudaStreamCaptureModeThreadLocal), "recording a CUDA graph");
  recording_ = stream.handle();
}

void Graph::end() {
  if (recording_ == nullptr) throw DeviceError("end() of a CUDA graph without begin()");
  cudaGraph_t graph = nullptr;
  const StreamHandle stream = recording_;
  recording_ = nullptr;
  check(cudaStreamEndCapture(stream, &graph), "recording a CUDA graph");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "preparing a CUDA graph");
  if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  executable_ = executable;
}

void Graph::abandon() noexcept {
  if (recording_ == nullptr) return;
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(recording_, &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();
  recording_ = nullptr;
}

void Graph::launch(const Stream& stream) const {
  if (executable_ == nullptr) throw DeviceError("a CUDA graph must be recorded before it is launched");
  check(cudaGraphLaunch(executable_, stream.handle()), "launching a CUDA graph");
}

}  // namespace qwen2vl::cuda
