// What the processor offers at run time, and the kernel table chosen for it.
#pragma once

// Only Linux is asked for bfmmla, and only these compilers can be given it for one source alone.
#if defined(__aarch64__) && defined(__linux__) && (!defined(__clang__) || __clang_major__ >= 16)
#define OLTR_NEON_BF16
#endif
// Those of x86, of which builds for sanitizers leave out what these would not look at: CMakeLists.txt.
#if defined(__x86_64__) && !defined(OLTR_WITHOUT_AVX2)
#define OLTR_AVX2
#endif
#if defined(__x86_64__) && !defined(OLTR_WITHOUT_AVX512)
#define OLTR_AVX512
#endif

namespace oltr {

struct CpuFeatures {
  bool avx2, fma, avx512f, avx512_bf16;  // avx512f: with bw, dq and vl
  bool neon, neon_bf16;
  bool amx;  // tiles of bfloat16, which this process may use
  bool intel;
};
CpuFeatures cpu_features();

// Why matrix tiles cannot be used; empty if they can. The first call asks the system for them, once
// a process: threads and forks have them too.
const char* tiles_refused();

// "avx512", "avx2", "neon", "generic" and so on. OLTR_EXT_CPU lowers the choice (for tests and
// measurements); asking for what the processor lacks keeps the best it has.
const char* selected_isa();

}  // namespace oltr
