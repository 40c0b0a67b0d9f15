// The kernels for "neon_bf16": as "neon", with products of bfloat16 pairs.
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
#include "cpu/kernels.h"

#if defined(OLTR_NEON_BF16)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC target("+bf16")
#pragma GCC optimize("no-schedule-insns")  // see isa_neon.cpp
#endif

#define OLTR_ISA neon_bf16
#define OLTR_BF16_DOT
#define OLTR_EXACT_TABLE kernels_neon
#define OLTR_VECTOR_BYTES 16
#define OLTR_VECTOR_REGISTERS 32
#include "cpu/product_bfmmla.h"
//
#include "cpu/isa_table.h"

namespace oltr {
constexpr KernelTable kernels_neon_bf16 = neon_bf16::make_table("neon_bf16");
}  // namespace oltr

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif  // OLTR_NEON_BF16
