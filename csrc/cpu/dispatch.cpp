// Chooses the kernel table for the processor at run time.
#include <cstdlib>
#include <cstring>

#include "cpu/cpu_features.h"
#include "cpu/kernels.h"

namespace oltr {

extern const KernelTable kernels_generic;
#if defined(__x86_64__)
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
#endif

CpuFeatures cpu_features() {
  CpuFeatures f{};
#if defined(__x86_64__)
  __builtin_cpu_init();
  f.avx2 = __builtin_cpu_supports("avx2");
  f.fma = __builtin_cpu_supports("fma");
  f.avx512f = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  f.avx512_bf16 = __builtin_cpu_supports("avx512bf16");
#endif
  return f;
}

const KernelTable& kernels() {
  static const KernelTable& chosen = []() -> const KernelTable& {
#if defined(__x86_64__)
    const char* wish = std::getenv("OLTR_EXT_CPU_ISA");
    const bool generic = wish != nullptr && std::strcmp(wish, "generic") == 0;
    const bool at_most_avx2 = wish != nullptr && std::strcmp(wish, "avx2") == 0;
    const CpuFeatures f = cpu_features();
    if (f.avx512f && f.fma && !generic && !at_most_avx2) return kernels_avx512;
    if (f.avx2 && f.fma && !generic) return kernels_avx2;
#endif
    return kernels_generic;
  }();
  return chosen;
}

const char* selected_isa() { return kernels().isa; }

}  // namespace oltr
