#include "common/fair_lock.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "common/error.h"

namespace qwen2vl {

namespace {

constexpr std::chrono::milliseconds kPatience(20);

}  // namespace

bool FairLock::lock(const std::function<bool()>& give_up) {
  std::unique_lock<std::mutex> guard(mutex_);
  check_that_it_ends();
  process_ = getpid();
  const int64_t place = next_place_++;
  queue_.push_back({place, std::this_thread::get_id()});
  for (;;) {
    // Asked without the mutex: it may take other locks, and what it waits for may ask for this one.
    guard.unlock();
    try {
      if (give_up()) {
        leave(place);
        return false;
      }
    } catch (...) {
      leave(place);
      throw;
    }
    guard.lock();
    const auto served = [&] { return !held_ && queue_.front().number == place; };
    if (moved_.wait_for(guard, kPatience, served)) {
      queue_.pop_front();
      held_ = true;
      holder_ = std::this_thread::get_id();
      return true;
    }
  }
}

void FairLock::unlock() {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    held_ = false;
  }
  moved_.notify_all();
}

void FairLock::check_that_it_ends() const {
  if (process_ != getpid() && (held_ || !queue_.empty())) {
    throw Error(
        "a call was under way when this process was forked, and its thread is not here to end it: open a "
        "session in this process, or fork while no call is under way");
  }
  const auto here = std::this_thread::get_id();
  const bool waits =
      std::any_of(queue_.begin(), queue_.end(), [&](const Place& place) { return place.thread == here; });
  if (waits || (held_ && holder_ == here)) {
    throw Error(
        "a call of this thread is under way, and can't end before this one, which a signal handler or a "
        "finalizer made: raise an exception there or set that call's cancel token, and make this one when it "
        "has returned");
  }
}

void FairLock::leave(int64_t number) {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    queue_.erase(std::find_if(queue_.begin(), queue_.end(),
                              [&](const Place& place) { return place.number == number; }));
  }
  moved_.notify_all();
}

bool FairLock::held() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return held_;
}

int64_t FairLock::waiting() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return static_cast<int64_t>(queue_.size());
}

}  // namespace qwen2vl
