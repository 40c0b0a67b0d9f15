// The kernels for "avx2": 32-byte vectors.
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

#if defined(OLTR_AVX2)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define OLTR_ISA avx2
#define OLTR_VECTOR_BYTES 32
#include "cpu/isa_table.h"

namespace oltr {
constexpr KernelTable kernels_avx2 = avx2::make_table("avx2");
}  // namespace oltr

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // OLTR_AVX2
