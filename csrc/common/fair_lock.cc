#include "common/fair_lock.h"

#include <algorithm>
#include <chrono>

namespace qwen2vl {

namespace {

constexpr std::chrono::milliseconds kPatience(20);

}  // namespace

bool FairLock::lock(const std::function<bool()>& give_up) {
  std::unique_lock<std::mutex> guard(mutex_);
  const int64_t place = next_place_++;
  queue_.push_back(place);
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
    const auto served = [&] { return !held_ && queue_.front() == place; };
    if (moved_.wait_for(guard, kPatience, served)) {
      queue_.pop_front();
      held_ = true;
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

void FairLock::leave(int64_t place) {
  {
    const std::lock_guard<std::mutex> guard(mutex_);
    queue_.erase(std::find(queue_.begin(), queue_.end(), place));
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
