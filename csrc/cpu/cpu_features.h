// What the processor offers at run time, and the kernel table chosen for it.
#pragma once

namespace oltr {

struct CpuFeatures {
  bool avx2, fma, avx512f, avx512_bf16;  // avx512f: with bw, dq and vl
};
CpuFeatures cpu_features();

// "avx512", "avx2" or "generic". OLTR_EXT_CPU lowers the choice (for tests and measurements);
// asking for what the processor lacks keeps the best it has.
const char* selected_isa();

}  // namespace oltr
