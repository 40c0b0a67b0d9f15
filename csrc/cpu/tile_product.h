// C[m,n] (+)= A[m,k] B[k,n] by matrix tiles: words of bfloat16 pairs, m, n and k in whole tiles.
//
// Two by two tiles of C in registers: four products for four loads, which the processor takes side
// by side as long as one operand comes from the first cache. So k goes in pieces whose panel of
// A, read again for every panel of B, stays there, and B, where it has several, passes the cache by.
#pragma once

#include "cpu/tile_operand.h"

namespace oltr {
namespace OLTR_ISA {

constexpr int64_t kTileDepth = 256;  // words of k at a time

// Which planes of A and B are multiplied, in this order. A word's number is the sum of its planes;
// what two rounding errors give is left out.
template <int planes>
struct PlanePairs;
template <>
struct PlanePairs<1> {
  static constexpr int n = 1, a[] = {0}, b[] = {0};
};
template <>
struct PlanePairs<2> {
  static constexpr int n = 3, a[] = {1, 0, 0}, b[] = {0, 1, 0};
};

// f(row, column) of each of MR by NR tiles, as constants: a tile register's number must be one.
template <int NR, class F, int... T>
OLTR_INLINE void for_tiles(const F& f, std::integer_sequence<int, T...>) {
  (f(std::integral_constant<int, T / NR>{}, std::integral_constant<int, T % NR>{}), ...);
}

struct TileProduct {
  int64_t k;  // words, all planes
  Operand<float> a;
  Panels<const float, kTile> b;
  Panels<float, kTile> c;
  bool accumulate;
};

// MR by NR tiles of C, in registers 0 to 3, from A's in 4 and 5 and B's in 6 and 7, over words
// [k0, k1) of each plane.
template <int planes, int MR, int NR, bool b_passes>
OLTR_INLINE void tile_block(const TileProduct& g, int64_t k0, int64_t k1, int64_t row,
                            int64_t column) {
  constexpr std::make_integer_sequence<int, MR * NR> all;
  const auto c = [&](int i, int j) { return g.c.at(row + i * kTile, column + j * kTile); };
  for_tiles<NR>(
      [&](auto i, auto j) {
        if (g.accumulate || k0 > 0)
          Tile::load<i * NR + j>(c(i, j), g.c.row);
        else
          Tile::zero<i * NR + j>();
      },
      all);
  const int64_t deep = g.k / planes, a_row = g.a.row, b_row = g.b.row, b_panel = g.b.panel;
  for (int pair = 0; pair < PlanePairs<planes>::n; ++pair) {
    const float* a = g.a.data + row * a_row + PlanePairs<planes>::a[pair] * deep + k0;
    const float* b = g.b.at(PlanePairs<planes>::b[pair] * deep + k0, column);
    for (int64_t k = k0; k < k1; k += kTile) {
      for_tiles<NR>(
          [&](auto i, auto j) {
            constexpr int ta = 4 + i % 2, tb = 6 + j;
            if constexpr (j == 0) Tile::load<ta>(a + i * kTile * a_row, a_row);
            if constexpr (i == 0) Tile::load<tb, b_passes>(b + j * b_panel, b_row);
            Tile::multiply<i * NR + j, ta, tb>();
          },
          all);
      a += kTile;
      b += kTile * b_row;
    }
  }
  for_tiles<NR>([&](auto i, auto j) { Tile::store<i * NR + j>(c(i, j), g.c.row); }, all);
}

// A row of blocks, MR tiles high.
template <int planes, int MR, bool b_passes>
static void tile_row(const TileProduct& g, int64_t k0, int64_t k1, int64_t row, int64_t n) {
  int64_t j = 0;
  if constexpr (MR <= 2)
    for (; j + 2 * kTile <= n; j += 2 * kTile)
      tile_block<planes, MR, 2, b_passes>(g, k0, k1, row, j);
  for (; j < n; j += kTile) tile_block<planes, MR, 1, b_passes>(g, k0, k1, row, j);
}

template <int planes>
static void tile_product(const TileProduct& g, int64_t m, int64_t n) {
  const int64_t deep = g.k / planes;
  for (int64_t k0 = 0; k0 < deep; k0 += kTileDepth) {
    const int64_t k1 = deep - k0 < kTileDepth ? deep : k0 + kTileDepth;
    int64_t i = 0;
    if (n == kTile)  // a batch of a few rows
      for (; i + 4 * kTile <= m; i += 4 * kTile) tile_row<planes, 4, false>(g, k0, k1, i, n);
    if (n <= 2 * kTile)
      for (; i + 2 * kTile <= m; i += 2 * kTile) tile_row<planes, 2, false>(g, k0, k1, i, n);
    for (; i + 2 * kTile <= m; i += 2 * kTile) tile_row<planes, 2, true>(g, k0, k1, i, n);
    if (i < m) tile_row<planes, 1, true>(g, k0, k1, i, n);
  }
}

}  // namespace OLTR_ISA
}  // namespace oltr
