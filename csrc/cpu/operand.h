// What a product multiplies. An operand is an array of words of the accumulator type; a word holds
// one number, or two consecutive bfloat16 of the summed index where the processor multiplies such
// pairs. Only the multipliers know: Exact and Pairs here, Tiled in tile_operand.h. The passes over
// the bank count words.
//
// A multiplier M says
//   group, planes        numbers in a word; words whose sum a number is
//   piece                how many numbers are summed by themselves before they are added to others
//   panel                how many columns of a right operand, or of scores, lie together; 0: all
//   depth_unit, row_unit what the summed index (in words) and the left operand's rows are padded to
//   out_rows             how many rows of the bank's gradients go out at a time; 0: a whole tile's
//   cut                  how a pass is cut: see common/plan.h
//   headroom             see tile_softmax in bank_forward.h
//   words, norm2         rows of a matrix as words, and the squared length of one
//   down, across         scores (classes, rows of the batch) as the left operand of a product that
//                        sums over classes, or over rows
//   recall_tiles         tiles of the bank whose probabilities, side by side in rows of so much
//                        `room`, wait for one product with them
//   Session              what a thread holds while it multiplies
#pragma once

#include "common/dtype.h"
#include "common/plan.h"
#include "cpu/pairs.h"
#include "cpu/simd.h"

namespace oltr {
namespace OLTR_ISA {

// A matrix in panels of `width` columns (0: in one), each with its rows one after another.
template <class T, int64_t width>
struct Panels {
  T* data;
  int64_t row, panel;  // distances of rows and of panels
  OLTR_INLINE T* at(int64_t i, int64_t j) const {
    if constexpr (width == 0) return data + i * row + j;
    return data + i * row + j / width * panel + j % width;
  }
};

// A left operand and its strides.
template <class T>
struct Operand {
  const T* data;
  int64_t row, col;
};

// Memory to ask for while a product computes, a little at every k: the next tile of the bank, so
// that staging it finds it in cache.
struct Ahead {
  const char* at = nullptr;
  const char* end = nullptr;
};

constexpr int64_t kPiece = 256;  // words, of products that lanes sum: see product.h

struct NoSession {
  OLTR_INLINE NoSession() {}
};

// A word is a number, products are exact in it.
template <class T>
struct Exact {
  using Acc = T;
  using Session = NoSession;
  static constexpr int group = 1, planes = 1;
  static constexpr int64_t piece = group * kPiece;
  static constexpr Acc headroom = 0;
  static constexpr int64_t panel = 0, depth_unit = 1, row_unit = 1, out_rows = 0, recall_tiles = 1;
  static constexpr Cut cut{};

  static OLTR_INLINE Vec<T> multiply_add(Vec<T> acc, T a, Vec<T> b) { return acc + a * b; }

  // n numbers, then zeros up to `words` words.
  static OLTR_INLINE void words(Matrix m, int64_t first, int64_t n, int64_t words, T* out) {
    convert_in(m.data, m.dtype, first, n, out);
    fill(out + n, words - n, T(0));
  }
  static OLTR_INLINE T norm2(const T* row, int64_t n) { return dot(row, row, n); }

  // The scores as they are.
  static OLTR_INLINE int64_t scratch(int64_t, int64_t) { return 0; }
  static OLTR_INLINE Operand<T> down(Panels<T, 0> scores, int64_t, int64_t, int64_t, T*) {
    return {scores.data, 1, scores.row};
  }
  static OLTR_INLINE Operand<T> across(Panels<T, 0> scores, int64_t, int64_t, T*) {
    return {scores.data, scores.row, 1};
  }
};

#if defined(OLTR_BF16_DOT)
// A word is two bfloat16; the processor sums both products in float.
struct Pairs : PairWords {
  using Session = NoSession;
  static constexpr int planes = 1;
  static constexpr int64_t piece = group * kPiece;
  static constexpr Acc headroom = 0;
  static constexpr int64_t panel = 0, depth_unit = 1, row_unit = 1, out_rows = 0, recall_tiles = 1;
  static constexpr Cut cut{};

  static OLTR_INLINE Vec<float> multiply_add(Vec<float> acc, float a, Vec<float> b) {
#if defined(__aarch64__)
    asm("bfdot %0.4s, %1.8h, %2.2h[0]" : "+w"(acc) : "w"(b), "w"(a));
    return acc;
#else
    return (Vec<float>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
#endif
  }
  static OLTR_INLINE void words(Matrix m, int64_t first, int64_t n, int64_t words, float* out) {
    fill_words<1>(m, first, n, words, out);
  }
  static OLTR_INLINE float norm2(const float* row, int64_t n) { return words_norm2(row, n); }

  static OLTR_INLINE int64_t scratch(int64_t classes, int64_t lanes) {
    return round_up(classes, 2) / 2 * lanes;
  }
  // Words of scores (c, r) and (c + 1, r): (count / 2, lanes).
  static OLTR_INLINE Operand<float> down(Panels<float, 0> scores, int64_t count, int64_t lanes,
                                         int64_t, float* out) {
    for (int64_t c = 0; c < count; c += 2)
      for (int64_t r = 0; r < lanes; r += L) {
        const Vec<float> next = c + 1 < count ? load<float>(scores.at(c + 1, r)) : Vec<float>{};
        store<float>(out + c / 2 * lanes + r, joined(load<float>(scores.at(c, r)), next));
      }
    return {out, 1, lanes};
  }
  // Words of scores (c, r) and (c, r + 1): (count, lanes / 2).
  static OLTR_INLINE Operand<float> across(Panels<float, 0> scores, int64_t count, int64_t lanes,
                                           float* out) {
    for (int64_t i = 0; i < count * lanes; i += L) pack(load<float>(scores.data + i), out + i / 2);
    return {out, lanes / 2, 1};
  }
};
#endif

}  // namespace OLTR_ISA
}  // namespace oltr
