// The kernels on matrix tiles as plain C++, for tests: see cpu/tile.h.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "cpu/kernels.h"

#define OLTR_ISA tile_twin
#define OLTR_TILES
#define OLTR_TILE_TWIN
#define OLTR_EXACT_TABLE kernels_generic
#define OLTR_VECTOR_BYTES 16
#include "cpu/isa_table.h"

#include "testing/tiles.h"

namespace oltr::testing {
void twin_product(const TileArrays& t) {
  using tile_twin::kTile;
  tile_twin::tile_product<1>(
      {t.k, {t.a, t.k, 1}, {t.b, kTile, kTile * t.k}, {t.c, t.n, kTile}, t.accumulate}, t.m, t.n);
}
}  // namespace oltr::testing

namespace oltr {
extern const KernelTable kernels_tile_twin;
constexpr KernelTable kernels_tile_twin = tile_twin::make_table("tile_twin");
}  // namespace oltr
