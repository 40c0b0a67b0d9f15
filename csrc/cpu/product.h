// The one matrix product: C[M,N] (+)= A[M,K] B[K,N], B and C row-major, A with any two strides.
//
// A is read by broadcast, so a transposed or column-strided A costs nothing and the bank is never
// repacked: with the batch as the vector lanes, logits are keys[c,:] times x transposed, their
// softmax runs along lanes without a horizontal step, and P' M and dS' X are the same product.
#pragma once

#include "cpu/simd.h"

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

// MR rows by NV vectors of C in registers; the last vector holds `tail` columns when Tail.
template <class T, int MR, int NV, bool Tail>
OLTR_INLINE void product_tile(const ProductArgs<T>& g, const T* a, const T* b, T* c, int tail) {
  constexpr int L = Lanes<T>::n;
  Vec<T> acc[MR][NV];
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NV; ++j) {
      const bool last = Tail && j == NV - 1;
      T* p = c + i * g.c_row + j * L;
      acc[i][j] = !g.accumulate ? Vec<T>{} : last ? load_first(p, tail) : load<T>(p);
    }
  for (int64_t k = 0; k < g.k; ++k) {
    Vec<T> row[NV];
    for (int j = 0; j < NV; ++j) {
      const bool last = Tail && j == NV - 1;
      row[j] = last ? load_first(b + j * L, tail) : load<T>(b + j * L);
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) {
      const T s = a[i * g.a_row];
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] += s * row[j];
    }
    a += g.a_col;
    b += g.b_row;
  }
  for (int i = 0; i < MR; ++i)
    for (int j = 0; j < NV; ++j) {
      T* p = c + i * g.c_row + j * L;
      if (Tail && j == NV - 1) {
        for (int t = 0; t < tail; ++t) p[t] = acc[i][j][t];
      } else {
        store<T>(p, acc[i][j]);
      }
    }
}

template <class T, int NV, bool Tail>
static void product_columns(const ProductArgs<T>& g, int64_t m, int64_t column, int tail) {
  constexpr int MR = OLTR_VECTOR_BYTES == 64 ? 8 : 4;
  int64_t i = 0;
  for (; i + MR <= m; i += MR)
    product_tile<T, MR, NV, Tail>(g, g.a + i * g.a_row, g.b + column, g.c + i * g.c_row + column,
                                  tail);
  for (; i < m; ++i)
    product_tile<T, 1, NV, Tail>(g, g.a + i * g.a_row, g.b + column, g.c + i * g.c_row + column,
                                 tail);
}

template <class T>
static void product(int64_t m, int64_t n, int64_t k, const T* a, int64_t a_row, int64_t a_col,
                    const T* b, int64_t b_row, T* c, int64_t c_row, bool accumulate) {
  constexpr int L = Lanes<T>::n;
  const ProductArgs<T> g{k, a, a_row, a_col, b, b_row, c, c_row, accumulate};
  int64_t j = 0;
  for (; j + 2 * L <= n; j += 2 * L) product_columns<T, 2, false>(g, m, j, 0);
  for (; j + L <= n; j += L) product_columns<T, 1, false>(g, m, j, 0);
  if (j < n) product_columns<T, 1, true>(g, m, j, static_cast<int>(n - j));
}

}  // namespace OLTR_ISA
}  // namespace oltr
