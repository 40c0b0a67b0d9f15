// The one matrix product: C[m,n] (+)= A[m,k] B[k,n] over words (see operand.h), B and C row-major,
// A with any two strides, n a whole number of vectors.
//
// A is read by broadcast, so a transposed A costs nothing: with the batch as the vector lanes,
// logits are keys[c,:] times x transposed, their softmax runs along lanes without a horizontal
// step, and P' M and dS' X are the same product.
//
// Six rows by four vectors of C in registers, by two where there are 16 of them: each k costs four
// loads and six broadcasts for 24 multiplications, so the multipliers, not the loads, set the pace,
// and six rows a power of two apart still fit into one set of an 8-way cache. Columns are the outer
// loop: their panel of B is read once from L2 and then from L1.
//
// Sums start anew every kPiece words and are added to C then: a rounding error is one of some
// hundreds of additions, however long the sum.
#pragma once

#include "cpu/operand.h"
#if defined(OLTR_TILES)
#include "cpu/tile_product.h"
#endif

namespace oltr {
namespace OLTR_ISA {

template <class T>
struct ProductArgs {
  int64_t k;
  const T* a;
  int64_t a_row, a_col;
  const T* b;
  int64_t b_row;
  T* c;
  int64_t c_row;
  bool accumulate;
};

// MR rows by NV vectors of C.
template <class M, int MR, int NV>
OLTR_INLINE void product_tile(const ProductArgs<typename M::Acc>& g, int64_t row, int64_t column,
                              Ahead& ahead) {
  using T = typename M::Acc;
  constexpr int L = Lanes<T>::n;
  const T* a = g.a + row * g.a_row;
  const T* b = g.b + column;
  T* c = g.c + row * g.c_row + column;
  const bool some = ahead.at < ahead.end;
  const char* next = some ? ahead.at : reinterpret_cast<const char*>(b);
  const int64_t step = some ? 32 : 0;
  int64_t left = g.k;
  bool add = g.accumulate;
  do {
    Vec<T> acc[MR][NV] = {};
    for (int64_t k = left < kPiece ? left : kPiece; k > 0; --k) {
      __builtin_prefetch(next, 0, 2);
      next += step;
      Vec<T> row_b[NV];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) row_b[j] = load<T>(b + j * L);
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) {
        const T s = a[i * g.a_row];
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) acc[i][j] = M::multiply_add(acc[i][j], s, row_b[j]);
      }
      a += g.a_col;
      b += g.b_row;
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) {
        T* to = c + i * g.c_row + j * L;
        store<T>(to, add ? load<T>(to) + acc[i][j] : acc[i][j]);
      }
    left -= kPiece;
    add = true;
  } while (left > 0);
  if (some) ahead.at = next;
}

template <class M, int NV>
static void product_columns(const ProductArgs<typename M::Acc>& g, int64_t m, int64_t column,
                            Ahead& ahead) {
  int64_t i = 0;
  for (; i + 6 <= m; i += 6) product_tile<M, 6, NV>(g, i, column, ahead);
  for (; i + 4 <= m; i += 4) product_tile<M, 4, NV>(g, i, column, ahead);
  for (; i + 2 <= m; i += 2) product_tile<M, 2, NV>(g, i, column, ahead);
  for (; i < m; ++i) product_tile<M, 1, NV>(g, i, column, ahead);
}

// As many whole panels of B as there are, each copied before it is read for every six rows: where a
// panel is one cache line wide, its lines would lie a power of two apart, and so meet in few sets of
// the first cache and, with wide rows, take a TLB entry each. Returns the columns done. The sums are
// those of the plain loop, bit by bit.
template <class M, int NV, class T = typename M::Acc>
static int64_t product_packed(const ProductArgs<T>& g, int64_t m, int64_t n, Ahead& ahead) {
  constexpr int64_t L = Lanes<T>::n, kWidth = NV * L;
  alignas(64) T panel[kPiece * kWidth];  // half of a 32 KB cache
  const int64_t columns = n / kWidth * kWidth;
  for (int64_t k0 = 0; k0 < g.k; k0 += kPiece) {
    ProductArgs<T> part = g;
    part.k = g.k - k0 < kPiece ? g.k - k0 : kPiece;
    part.a = g.a + k0 * g.a_col;
    part.b = panel;
    part.b_row = kWidth;
    part.accumulate = g.accumulate || k0 > 0;
    for (int64_t j = 0; j < columns; j += kWidth) {
      const T* b = g.b + k0 * g.b_row + j;
      for (int64_t k = 0; k < part.k; ++k)
        for (int64_t i = 0; i < kWidth; i += L)
          store<T>(panel + k * kWidth + i, load<T>(b + k * g.b_row + i));
      part.c = g.c + j;
      product_columns<M, NV>(part, m, 0, ahead);
    }
  }
  return columns;
}

template <class M, class T = typename M::Acc>
static void lane_product(const ProductArgs<T>& g, int64_t m, int64_t n, Ahead& ahead) {
  constexpr int L = Lanes<T>::n, kWide = OLTR_VECTOR_REGISTERS == 32 ? 4 : 2;
  constexpr bool kNarrow = kWide * OLTR_VECTOR_BYTES <= 64;
  constexpr int64_t kWorthACopy = 24;  // rows
  int64_t j = kNarrow && m >= kWorthACopy && g.k > 0 ? product_packed<M, kWide>(g, m, n, ahead) : 0;
  for (; j + kWide * L <= n; j += kWide * L) product_columns<M, kWide>(g, m, j, ahead);
  if constexpr (kWide > 2)
    for (; j + 2 * L <= n; j += 2 * L) product_columns<M, 2>(g, m, j, ahead);
  for (; j < n; j += L) product_columns<M, 1>(g, m, j, ahead);
}

// Rows of A and of C up to a whole M::row_unit are read and written.
template <class M, class T = typename M::Acc>
static void product(int64_t m, int64_t n, int64_t k, Operand<T> a, Panels<const T, M::panel> b,
                    Panels<T, M::panel> c, bool accumulate, Ahead& ahead) {
#if defined(OLTR_TILES)
  (void)ahead;  // these products are long enough for the processor to look ahead by itself
  tile_product<M::planes>({k, a, b, c, accumulate}, round_up(m, kTile), n);
#else
  lane_product<M>({k, a.data, a.row, a.col, b.data, b.row, c.data, c.row, accumulate}, m, n, ahead);
#endif
}

}  // namespace OLTR_ISA
}  // namespace oltr
