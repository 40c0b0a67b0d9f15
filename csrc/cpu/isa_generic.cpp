// The kernels for "generic": 16-byte vectors.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#define OLTR_ISA generic
#define OLTR_VECTOR_BYTES 16
#include "cpu/isa_table.h"

namespace oltr {
constexpr KernelTable kernels_generic = generic::make_table("generic");
}  // namespace oltr
