// Uses csrc/common/worker.h as sessions do, from many threads; test_worker.py looks at what it prints.

#include "common/worker.h"

#include <algorithm>
#include <iostream>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

int main() {
  using qwen2vl::Worker;
  auto worker = std::make_unique<Worker>();
  std::set<std::thread::id> ran_on, asked_from;
  int inside = 0, most_inside = 0, done = 0, thrown = 0;
  std::mutex mutex;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 8; ++caller) {
    callers.emplace_back([&, caller] {
      for (int call = 0; call < 500; ++call) {
        try {
          worker->run([&] {  // no lock: works don't overlap, and the callers see what they did
            most_inside = std::max(most_inside, ++inside);
            ran_on.insert(std::this_thread::get_id());
            --inside;
            if (call % 5 == caller % 5) throw std::runtime_error(std::to_string(caller));
            ++done;
          });
        } catch (const std::runtime_error& error) {
          const std::lock_guard<std::mutex> lock(mutex);
          thrown += error.what() == std::to_string(caller);  // not another caller's
        }
      }
      const std::lock_guard<std::mutex> lock(mutex);
      asked_from.insert(std::this_thread::get_id());
    });
  }
  for (auto& caller : callers) caller.join();
  const bool apart = ran_on.count(std::this_thread::get_id()) == 0 && asked_from.count(*ran_on.begin()) == 0;
  worker.reset();
  Worker idle;  // stops without ever having worked
  std::cout << "threads " << ran_on.size() << " apart " << apart << " at once " << most_inside << " done "
            << done << " thrown " << thrown << "\n";
}
