#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace qwen2vl {

// Mutual exclusion in order of arrival (std::mutex promises no order).
class FairLock {
 public:
  // Takes a place in the queue and waits for those before. `give_up` is asked first, and again every few
  // hundredths of a second while waiting; when it returns true or throws, the place is given up. Whether the
  // lock is held now. Throws Error where the wait would never end: this thread holds the lock, or waits for
  // it already, and was interrupted (by a signal's handler, a finalizer), or a thread of the process from
  // which this one was forked does.
  bool lock(const std::function<bool()>& give_up);
  void unlock();

  bool held() const;
  int64_t waiting() const;

 private:
  struct Place {
    int64_t number;
    std::thread::id thread;
  };

  void check_that_it_ends() const;
  void leave(int64_t number);

  mutable std::mutex mutex_;
  std::condition_variable moved_;  // the queue, or who holds the lock
  bool held_ = false;
  std::thread::id holder_;
  int process_ = 0;  // of who holds the lock or waits
  int64_t next_place_ = 0;
  std::deque<Place> queue_;
};

}  // namespace qwen2vl
