#pragma once

#include <cstdlib>  // defines __GLIBC__ where that is the library

// For plain loops that the compiler vectorises: on x86-64 a function is compiled a second time for AVX2, and
// the loader takes the one for the processor at hand. AVX2 without FMA, so that both round alike.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define QWEN2VL_AVX2_CLONE __attribute__((target_clones("default", "avx2")))
#else
#define QWEN2VL_AVX2_CLONE
#endif
