#pragma once

#include <cuda_runtime_api.h>

namespace qwen2vl::cuda {

// While one of these lives, the calling thread may allocate, free, copy and wait although another thread
// records a CUDA graph. ONNX Runtime records in CUDA's global mode: a call that could be unsafe fails from
// any thread of the process then (cudaErrorStreamCaptureUnsupported), and spoils the recording. The project's
// calls work on streams that nobody else records, and frames are prepared on threads of their own meanwhile.
// What the calling thread records itself is guarded as ever.
class IgnoreOtherRecordings {
 public:
  IgnoreOtherRecordings() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~IgnoreOtherRecordings() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  IgnoreOtherRecordings(const IgnoreOtherRecordings&) = delete;
  IgnoreOtherRecordings& operator=(const IgnoreOtherRecordings&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeThreadLocal;  // swapped with the thread's own, and back
};

}  // namespace qwen2vl::cuda
