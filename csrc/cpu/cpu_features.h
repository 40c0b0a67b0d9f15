// What the processor offers at run time, and the kernel table chosen for it.
#pragma once

// Only Linux is asked for bfmmla, and only these compilers can be given it for one source alone.
#if defined(__aarch64__) && defined(__linux__) && (!defined(__clang__) || __clang_major__ >= 16)
#define OLTR_NEON_BF16
#endif

namespace oltr {

struct CpuFeatures {
  bool avx2, fma, avx512f, avx512_bf16;  // avx512f: with bw, dq and vl
  bool neon, neon_bf16;
};
CpuFeatures cpu_features();

// "avx512", "avx2", "neon", "generic" and so on. OLTR_EXT_CPU lowers the choice (for tests and
// measurements); asking for what the processor lacks keeps the best it has.
const char* selected_isa();

}  // namespace oltr
