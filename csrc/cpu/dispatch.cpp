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
extern const KernelTable kernels_avx512_bf16;
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
    // In the order of preference; OLTR_EXT_CPU lowers the choice, for measurements and tests.
    const CpuFeatures f = cpu_features();
    const bool avx2 = f.avx2 && f.fma, avx512 = avx2 && f.avx512f;
    const struct {
      const KernelTable& table;
      bool runs;
    } tables[] = {{kernels_avx512_bf16, avx512 && f.avx512_bf16},
                  {kernels_avx512, avx512},
                  {kernels_avx2, avx2}};
    const char* wish = std::getenv("OLTR_EXT_CPU");
    bool below = wish == nullptr || *wish == '\0';
    for (const auto& t : tables) {
      below |= !below && std::strcmp(wish, t.table.isa) == 0;
      if (below && t.runs) return t.table;
    }
#endif
    return kernels_generic;
  }();
  return chosen;
}

const char* selected_isa() { return kernels().isa; }

}  // namespace oltr
