// The kernels for "avx512": 64-byte vectors.
//
// The standard headers come before the pragma: what they define inline must stay runnable on any
// processor, whichever translation unit the linker takes it from.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "cpu/cpu_features.h"

#if defined(OLTR_AVX512)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define OLTR_ISA avx512
#define OLTR_VECTOR_BYTES 64
#include "cpu/isa_table.h"

namespace oltr {
constexpr KernelTable kernels_avx512 = avx512::make_table("avx512");
}  // namespace oltr

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // OLTR_AVX512
