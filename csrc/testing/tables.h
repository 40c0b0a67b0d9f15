// The kernels of every instruction set that this processor and this build have.
#pragma once

#include "cpu/cpu_features.h"
#include "testing/checks.h"

namespace oltr {
extern const KernelTable kernels_tile_twin;  // what "amx" does, in plain C++
}  // namespace oltr

namespace oltr::testing {

inline std::vector<const KernelTable*> tables() {
  std::vector<const KernelTable*> all{&kernels_generic};
#if !defined(OLTR_EMULATED)  // the same C++ there as here
  all.push_back(&kernels_tile_twin);
#endif
  [[maybe_unused]] const CpuFeatures f = cpu_features();
#if defined(OLTR_AVX2)
  if (f.avx2 && f.fma) all.push_back(&kernels_avx2);
#endif
#if defined(OLTR_AVX512)
  if (f.avx512f && f.fma) all.push_back(&kernels_avx512);
  if (f.avx512f && f.fma && f.avx512_bf16) all.push_back(&kernels_avx512_bf16);
#endif
#if defined(OLTR_AMX)
  if (f.avx512f && f.fma && f.avx512_bf16 && f.amx) all.push_back(&kernels_amx);
#endif
#if defined(__aarch64__)
  all.push_back(&kernels_neon);
#if defined(OLTR_NEON_BF16)
  if (f.neon_bf16) all.push_back(&kernels_neon_bf16);
#endif
#endif
  return all;
}

// The twin, whose tiles are always whole, would take minutes then at any but small sizes; and what an
// emulator runs of the generic kernels is the C++ that other processors run at every size.
inline bool slow(const KernelTable* table, Sizes size) {
#if defined(OLTR_EMULATED)
  const bool left = table == &kernels_tile_twin || table == &kernels_generic;
#else
  const bool left = table == &kernels_tile_twin;
#endif
  return kSlow && left && size.batch * size.classes * size.width > 20000;
}

}  // namespace oltr::testing
