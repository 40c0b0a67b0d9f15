// Chooses the kernel table for the processor at run time.
#include <cstdlib>
#include <cstring>

#include "cpu/cpu_features.h"
#include "cpu/kernels.h"

#if defined(OLTR_NEON_BF16)
#include <sys/auxv.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace oltr {

namespace {

const char* ask_for_tiles() {
#if !defined(OLTR_AMX)
  return "this build leaves them out";
#elif !defined(__linux__)
  return "only Linux is asked for them";
#else
  unsigned a, b, c, d;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;  // leaf 7, EDX
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBf16) == 0 || (d & kTile) == 0)
    return "the processor has none";
  __cpuid(1, a, b, c, d);
  constexpr unsigned kXsave = 1u << 27;
  if ((c & kXsave) == 0) return "the system does not save registers by xsave";
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  if ((low & kTileState) != kTileState) return "the system does not save their state";
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0)
    return "the system refused them (arch_prctl)";
  return "";
#endif
}

}  // namespace

const char* tiles_refused() {
  static const char* const why = ask_for_tiles();
  return why;
}

CpuFeatures cpu_features() {
  CpuFeatures f{};
#if defined(__x86_64__)
  __builtin_cpu_init();
  f.avx2 = __builtin_cpu_supports("avx2");
  f.fma = __builtin_cpu_supports("fma");
  f.avx512f = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  f.avx512_bf16 = __builtin_cpu_supports("avx512bf16");
  f.amx = *tiles_refused() == '\0';
  f.intel = __builtin_cpu_is("intel");
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
    // What pays less than the next is taken only by its name: Intel's vdpbf16ps does 92 GFLOP/s
    // where conversion to float32 does 138 (one core of an Emerald Rapids).
    const struct {
      const KernelTable& table;
      bool runs;
      bool pays = true;
    } tables[] = {
#if defined(OLTR_AMX)
        {kernels_amx, f.avx2 && f.fma && f.avx512f && f.avx512_bf16 && f.amx},
#endif
#if defined(OLTR_AVX512)
        {kernels_avx512_bf16, f.avx2 && f.fma && f.avx512f && f.avx512_bf16, !f.intel},
        {kernels_avx512, f.avx2 && f.fma && f.avx512f},
#endif
#if defined(OLTR_AVX2)
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
      const bool named = wish != nullptr && std::strcmp(wish, t.table.isa) == 0;
      below |= named;
      if (below && t.runs && (t.pays || named)) return t.table;
    }
    return kernels_generic;
  }();
  return chosen;
}

const char* selected_isa() { return kernels().isa; }

}  // namespace oltr
