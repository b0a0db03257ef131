#pragma once

#include <cstddef>

// Copies from the device's memory into shared memory, done by the time that their thread waits for them.
void __pipeline_memcpy_async(void* to, const void* from, size_t bytes);
void __pipeline_commit();
void __pipeline_wait_prior(size_t prior);
