// The CPU kernels: one entry an op and direction, chosen for the processor at run time.
//
// Contract: pointers are valid for the sizes given, labels lie in [0, C) (or equal ignore_index
// where the op has one), C >= 1 and D >= 1. B may be 0.
#pragma once

#include "common/params.h"
#include "cpu/parallel.h"

namespace oltr {

struct KernelTable {
  const char* isa;
#define OLTR_KERNELS(Op, op)                                 \
  void (*op##_forward)(const Op##Forward&, const Parallel&); \
  void (*op##_backward)(const Op##Backward&, const Parallel&);
  OLTR_EACH_OP(OLTR_KERNELS)
#undef OLTR_KERNELS
};

// One an instruction set; a build holds those of its processor.
extern const KernelTable kernels_generic, kernels_avx2, kernels_avx512, kernels_avx512_bf16,
    kernels_amx, kernels_neon, kernels_neon_bf16;

// The table for this processor (see cpu_features.h).
const KernelTable& kernels();

}  // namespace oltr
