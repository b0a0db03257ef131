#pragma once

#include <cstddef>
#include <functional>

namespace qwen2vl {

// How many threads parallel_for uses, the caller's included. 0 means all cores this process may run on.
// Process-wide; takes effect at the next parallel_for.
void set_threads(int threads);
int threads();

// Calls body(begin, end) on slices that cover [0, count), each at least `grain` long, on up to threads()
// threads; returns when all are done. An exception thrown by a slice is rethrown here. A call made from
// inside a body runs serially.
void parallel_for(size_t count, size_t grain, const std::function<void(size_t, size_t)>& body);

}  // namespace qwen2vl
