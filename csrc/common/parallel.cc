#include "common/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace qwen2vl {

namespace {

std::atomic<int> requested_threads{0};
thread_local bool inside_parallel_for = false;

int available_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

void set_threads(int threads) { requested_threads = std::max(0, threads); }

int threads() {
  const int requested = requested_threads;
  return requested > 0 ? requested : available_cores();
}

// Threads are started for each call: the work passed here (a picture, a cache copy) is milliseconds, a start
// is some ten microseconds, and no pool has to survive a fork.
void parallel_for(size_t count, size_t grain, const std::function<void(size_t, size_t)>& body) {
  if (count == 0) return;
  const size_t slices = std::min<size_t>(threads(), (count + grain - 1) / std::max<size_t>(1, grain));
  if (slices <= 1 || inside_parallel_for) {
    body(0, count);
    return;
  }
  std::exception_ptr failure;
  std::mutex failure_mutex;
  std::atomic<size_t> next_slice{0};
  const auto work = [&] {
    inside_parallel_for = true;
    for (size_t slice; (slice = next_slice++) < slices;) {
      try {
        body(count * slice / slices, count * (slice + 1) / slices);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(failure_mutex);
        failure = std::current_exception();
      }
    }
    inside_parallel_for = false;
  };
  std::vector<std::thread> workers;
  workers.reserve(slices - 1);
  try {
    while (workers.size() < slices - 1) workers.emplace_back(work);
  } catch (const std::system_error&) {
    // The system has no more threads to give: those that run, at least this one, take all slices.
  }
  work();
  for (auto& worker : workers) worker.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace qwen2vl
