// The kernels for "amx": as "avx512", with products of bfloat16 on matrix tiles.
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

#include "cpu/kernels.h"

#if defined(OLTR_AMX)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

#define OLTR_ISA amx
#define OLTR_TILES
#define OLTR_BF16_CONVERT
#define OLTR_EXACT_TABLE kernels_avx512
#define OLTR_VECTOR_BYTES 64
#include "cpu/isa_table.h"

namespace oltr {
constexpr KernelTable kernels_amx = amx::make_table("amx");
}  // namespace oltr

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // OLTR_AMX
