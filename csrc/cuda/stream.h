#pragma once

#include <cstdint>

// The CUDA runtime's own types, named here so that headers need not include it.
struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace qwen2vl::cuda {

using StreamHandle = CUstream_st*;

// A queue of device work, in order, independent of the default stream. Everything of one session runs on one
// of these: the engine's calls (its handle goes to the engine) and the project's kernels between them.
class Stream {
 public:
  explicit Stream(int device = 0);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  StreamHandle handle() const { return handle_; }
  int device() const { return device_; }
  // Waits until the work queued so far is done. Throws DeviceError when some of it failed.
  void synchronize() const;

 private:
  int device_;
  StreamHandle handle_ = nullptr;
};

// Waits for somebody else's stream, given as its handle; 1 and 2 are the GPU's legacy and per-thread default.
void synchronize_stream(uintptr_t handle, int device);

// A mark in a stream.
class Event {
 public:
  explicit Event(bool timing = false) : timing_(timing) {}
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(const Stream& stream);
  // Blocks until the mark is reached.
  void synchronize() const;
  // Milliseconds from `start` to this event; both made with timing, recorded and reached.
  float milliseconds_since(const Event& start) const;

 private:
  bool timing_;
  CUevent_st* handle_ = nullptr;  // from the first mark on
};

// Work recorded once and launched as a whole. Memory addresses and launch sizes are those of the recording;
// what the kernels read from memory is not.
//
//     graph.begin(stream); ...queue work on stream...; graph.end(); graph.launch(stream);
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  // Starts recording: work queued on `stream` is not run until end().
  void begin(const Stream& stream);
  // Ends the recording and prepares it; an earlier recording of this object is replaced.
  void end();
  // Ends the recording and forgets it, after something went wrong between begin and end. Never throws.
  void abandon() noexcept;
  bool ready() const { return executable_ != nullptr; }
  // Queues the recorded work. Throws DeviceError when there is none.
  void launch(const Stream& stream) const;

 private:
  StreamHandle recording_ = nullptr;
  CUgraphExec_st* executable_ = nullptr;
};

}  // namespace qwen2vl::cuda
