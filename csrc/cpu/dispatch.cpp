// Chooses the kernel table for the processor at run time.
#include <cstdlib>
#include <cstring>

#include "cpu/cpu_features.h"
#include "cpu/kernels.h"

#if defined(OLTR_NEON_BF16)
#include <sys/auxv.h>
#endif

namespace oltr {

extern const KernelTable kernels_generic;
#if defined(__x86_64__)
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
extern const KernelTable kernels_avx512_bf16;
#elif defined(__aarch64__)
extern const KernelTable kernels_neon;
extern const KernelTable kernels_neon_bf16;
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
#elif defined(__aarch64__)
  f.neon = true;  // every one has it
#if defined(OLTR_NEON_BF16)
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16, which old system headers lack
  f.neon_bf16 = (getauxval(AT_HWCAP2) & kBf16) != 0;
#endif
#endif
  return f;
}

const KernelTable& kernels() {
  static const KernelTable& chosen = []() -> const KernelTable& {
    // In the order of preference; OLTR_EXT_CPU lowers the choice, for measurements and tests.
    [[maybe_unused]] const CpuFeatures f = cpu_features();
    const struct {
      const KernelTable& table;
      bool runs;
    } tables[] = {
#if defined(__x86_64__)
        {kernels_avx512_bf16, f.avx2 && f.fma && f.avx512f && f.avx512_bf16},
        {kernels_avx512, f.avx2 && f.fma && f.avx512f},
        {kernels_avx2, f.avx2 && f.fma},
#endif
#if defined(OLTR_NEON_BF16)
        {kernels_neon_bf16, f.neon_bf16},
#endif
#if defined(__aarch64__)
        {kernels_neon, f.neon},
#endif
        {kernels_generic, true}};
    const char* wish = std::getenv("OLTR_EXT_CPU");
    bool below = wish == nullptr || *wish == '\0';
    for (const auto& t : tables) {
      below |= !below && std::strcmp(wish, t.table.isa) == 0;
      if (below && t.runs) return t.table;
    }
    return kernels_generic;
  }();
  return chosen;
}

const char* selected_isa() { return kernels().isa; }

}  // namespace oltr
