// Products of bfloat16 pairs by bfmmla: two rows by two columns, four numbers deep, an instruction,
// where bfdot does one row by four columns, two deep. Both add pair by pair in the same order and
// round alike, so a sum has the same bits by either.
//
// The operands stay as the other products have them. The copy of a panel of B interleaves its rows
// by two, so that 16 bytes are two columns of two words; A is paired as it is read, at one shuffle
// for eight multiplications. Six rows by sixteen columns are 24 registers of C.
#pragma once

#include "cpu/product.h"

#if !defined(__clang__)
#define OLTR_SHUFFLE(a, b, i, j, k, l) \
  (Vec<float>)__builtin_shuffle(a, b, Lanes<float>::I{i, j, k, l})
#else
#define OLTR_SHUFFLE(a, b, i, j, k, l) (Vec<float>)__builtin_shufflevector(a, b, i, j, k, l)
#endif

namespace oltr {
namespace OLTR_ISA {

OLTR_INLINE Vec<float> low_words(Vec<float> a, Vec<float> b) {
  return OLTR_SHUFFLE(a, b, 0, 4, 1, 5);
}
OLTR_INLINE Vec<float> high_words(Vec<float> a, Vec<float> b) {
  return OLTR_SHUFFLE(a, b, 2, 6, 3, 7);
}
OLTR_INLINE Vec<float> low_halves(Vec<float> a, Vec<float> b) {
  return OLTR_SHUFFLE(a, b, 0, 1, 4, 5);
}
OLTR_INLINE Vec<float> high_halves(Vec<float> a, Vec<float> b) {
  return OLTR_SHUFFLE(a, b, 2, 3, 6, 7);
}
#undef OLTR_SHUFFLE

// c += a b' for two rows of two words each.
OLTR_INLINE Vec<float> bfmmla(Vec<float> c, Vec<float> a, Vec<float> b) {
  asm("bfmmla %0.4s, %1.8h, %2.8h" : "+w"(c) : "w"(a), "w"(b));
  return c;
}

constexpr int64_t kPanel = 16;  // columns

// A, two words of it at a time. Rows come in twos; a lone last row is its own partner.
template <bool kAlong, int MR>
struct PairedRows {
  static constexpr int n = (MR + 1) / 2;
  Vec<float> rows[n];

  // Two words at each place.
  static OLTR_INLINE Vec<float> two(const float* a) { return (Vec<float>)Vec<double>{bits(a), 0}; }
  static OLTR_INLINE Vec<float> two(const float* a, const float* b) {
    return (Vec<float>)Vec<double>{bits(a), bits(b)};
  }
  static OLTR_INLINE double bits(const float* a) {
    double d;
    __builtin_memcpy(&d, a, sizeof d);
    return d;
  }

  OLTR_INLINE void read(const float* a, int64_t a_row, int64_t a_col) {
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) {
      const float* first = a + 2 * i * a_row;
      if constexpr (kAlong) {
        rows[i] = two(first, MR > 1 ? first + a_row : first);
      } else if constexpr (MR == 1) {
        rows[i] = Vec<float>{first[0], first[a_col], first[0], first[a_col]};
      } else if (i % 2 == 0 && 2 * i + 3 < MR) {
        const Vec<float> w0 = load<float>(first), w1 = load<float>(first + a_col);
        rows[i] = low_words(w0, w1);
        rows[i + 1] = high_words(w0, w1);
      } else if (i % 2 == 0) {
        rows[i] = low_words(two(first), two(first + a_col));
      }
    }
  }
  // The last word of an odd count.
  OLTR_INLINE void read_one(const float* a, int64_t a_row) {
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) {
      const float* first = a + 2 * i * a_row;
      rows[i] = Vec<float>{first[0], 0, MR > 1 ? first[a_row] : 0, 0};
    }
  }
};

// MR rows of C by one panel.
template <bool kAlong, int MR>
OLTR_INLINE void bfmmla_tile(const ProductArgs<float>& g, int64_t row, Ahead& ahead) {
  using A = PairedRows<kAlong, MR>;
  constexpr int L = Lanes<float>::n, NV = kPanel / L;
  const float* a = g.a + row * g.a_row;
  const float* b = g.b;
  float* c = g.c + row * g.c_row;
  const int64_t next_row = MR > 1 ? g.c_row : 0;
  Vec<float> acc[A::n][2 * NV] = {};  // {C(i, j), C(i, j + 1), C(i + 1, j), C(i + 1, j + 1)}
  const bool some = ahead.at < ahead.end;
  const char* next = some ? ahead.at : reinterpret_cast<const char*>(b);
  const int64_t step = some ? 64 : 0;
  A pairs;
  const auto multiply = [&] {
#pragma GCC unroll 8
    for (int j = 0; j < 2 * NV; ++j) {
      const Vec<float> columns = load<float>(b + j * L);
#pragma GCC unroll 4
      for (int i = 0; i < A::n; ++i) acc[i][j] = bfmmla(acc[i][j], pairs.rows[i], columns);
    }
    b += 2 * kPanel;
  };
  for (int64_t k = 0; k + 2 <= g.k; k += 2) {
    __builtin_prefetch(next, 0, 2);
    next += step;
    pairs.read(a, g.a_row, g.a_col);
    multiply();
    a += 2 * g.a_col;
  }
  if (g.k % 2 != 0) {
    pairs.read_one(a, g.a_row);
    multiply();
  }
  if (some) ahead.at = next;
#pragma GCC unroll 4
  for (int i = 0; i < A::n; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      const auto out = [&](float* to, Vec<float> sum) {
        store<float>(to, g.accumulate ? load<float>(to) + sum : sum);
      };
      float* to = c + 2 * i * g.c_row + j * L;
      out(to, low_halves(acc[i][2 * j], acc[i][2 * j + 1]));
      if (MR > 1) out(to + next_row, high_halves(acc[i][2 * j], acc[i][2 * j + 1]));
    }
}

template <bool kAlong>
static void bfmmla_columns(const ProductArgs<float>& g, int64_t m, Ahead& ahead) {
  int64_t i = 0;
  for (; i + 6 <= m; i += 6) bfmmla_tile<kAlong, 6>(g, i, ahead);
  for (; i + 4 <= m; i += 4) bfmmla_tile<kAlong, 4>(g, i, ahead);
  for (; i + 2 <= m; i += 2) bfmmla_tile<kAlong, 2>(g, i, ahead);
  for (; i < m; ++i) bfmmla_tile<kAlong, 1>(g, i, ahead);
}

// Takes the place of the copy of panels of product.h.
template <>
int64_t product_packed<Pairs, 4, float>(const ProductArgs<float>& g, int64_t m, int64_t n,
                                        Ahead& ahead) {
  constexpr int64_t L = Lanes<float>::n;
  static_assert(kPanel == 4 * L);
  if (g.a_row != 1 && g.a_col != 1) return 0;
  alignas(64) float panel[kPiece * kPanel];
  const int64_t columns = n / kPanel * kPanel;
  for (int64_t k0 = 0; k0 < g.k; k0 += kPiece) {
    ProductArgs<float> part = g;
    part.k = g.k - k0 < kPiece ? g.k - k0 : kPiece;
    part.a = g.a + k0 * g.a_col;
    part.b = panel;
    part.accumulate = g.accumulate || k0 > 0;
    for (int64_t j = 0; j < columns; j += kPanel) {
      const float* b = g.b + k0 * g.b_row + j;
      for (int64_t k = 0; k < part.k; k += 2)
        for (int64_t i = 0; i < kPanel; i += L) {
          const float* word = b + k * g.b_row + i;
          const Vec<float> w0 = load<float>(word);
          const Vec<float> w1 = k + 1 < part.k ? load<float>(word + g.b_row) : Vec<float>{};
          store<float>(panel + k * kPanel + 2 * i, low_words(w0, w1));
          store<float>(panel + k * kPanel + 2 * i + L, high_words(w0, w1));
        }
      part.c = g.c + j;
      if (g.a_col == 1)
        bfmmla_columns<true>(part, m, ahead);
      else
        bfmmla_columns<false>(part, m, ahead);
    }
  }
  return columns;
}

}  // namespace OLTR_ISA
}  // namespace oltr
