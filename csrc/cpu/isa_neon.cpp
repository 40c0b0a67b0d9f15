// The kernels for "neon": 16-byte vectors, of which every 64-bit Arm has 32.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#if defined(__aarch64__)
// Six rows by four vectors are 24 registers, and loads that are hoisted push some of them to memory.
#if !defined(__clang__)
#pragma GCC optimize("no-schedule-insns")
#endif

#define OLTR_ISA neon
#define OLTR_VECTOR_BYTES 16
#define OLTR_VECTOR_REGISTERS 32
#include "cpu/isa_table.h"

namespace oltr {
constexpr KernelTable kernels_neon = neon::make_table("neon");
}  // namespace oltr
#endif  // __aarch64__
