#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace qwen2vl {

// One thread on which work of any callers runs, for what must always be called from the same thread.
class Worker {
 public:
  Worker();
  // Not while some run() is under way.
  ~Worker();
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Runs `work` there and waits for it; what it throws is thrown here. Callers take turns. Not to be called
  // from inside a work.
  void run(const std::function<void()>& work);

 private:
  void serve();

  std::mutex turn_;  // held by the caller whose work it is
  std::mutex mutex_;
  std::condition_variable changed_;
  const std::function<void()>* work_ = nullptr;  // null when done
  std::exception_ptr failure_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace qwen2vl
