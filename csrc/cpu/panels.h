// Operands of the products, staged: rows of the batch once a call, rows of the bank tile by tile.
//
// Staging a tile converts its type, fills the last vector with zeros, so that no product has a
// tail, and takes the rows off the powers of two. It costs one copy: up to a tenth of what reads it
// in bfloat16, so rows that need neither of the first two are read where they lie.
#pragma once

#include <initializer_list>

#include "cpu/product.h"
#include "cpu/rows.h"

namespace oltr {
namespace OLTR_ISA {

constexpr int64_t kPad = 16;  // numbers; the widest vector, half of one in float64

OLTR_INLINE int64_t padded(int64_t width) { return round_up(width, kPad); }

// A right operand, or scores, of M.
template <class M, class T = typename M::Acc>
using View = Panels<T, M::panel>;
// As M keeps `rows` rows; `stride` is their distance where all columns lie together.
template <class M, class T>
OLTR_INLINE View<M, T> view(T* data, int64_t rows, int64_t stride) {
  if constexpr (M::panel == 0) return {data, stride, 0};
  return {data, M::panel, M::panel * rows};
}
// Row by row.
template <class M, class T>
OLTR_INLINE View<M, T> plain(T* data, int64_t stride) {
  return {data, stride, M::panel};
}

// Words of a summed index of n numbers, all planes.
template <class M>
OLTR_INLINE int64_t depth(int64_t n) {
  return M::planes * round_up(div_up(n, M::group), M::depth_unit);
}

// The width of a feature in words, and the distance of two staged rows.
template <class M>
struct Layout {
  int64_t width, full, words;            // numbers, padded numbers, words along the feature
  int64_t natural_row, interleaved_row;  // strides in words
  bool in_place = false;
  OLTR_INLINE explicit Layout(int64_t D)
      : width(D),
        full(round_up(D, kPad * M::group)),
        words(M::planes * full / M::group),
        natural_row(words + kPad),
        interleaved_row(full + kPad) {}
  // Of these, where there are any: read where they lie if they are words already, at a word's
  // alignment, and need no padding.
  OLTR_INLINE Layout(int64_t D, std::initializer_list<Matrix> rows) : Layout(D) {
    in_place = M::planes == 1 && full == D;
    for (const Matrix& m : rows)
      in_place = in_place && (m.data == nullptr ||
                              (m.dtype == word_dtype &&
                               reinterpret_cast<uintptr_t>(m.data) % sizeof(typename M::Acc) == 0));
    if (!in_place) return;
    natural_row = words;
    if (M::group == 1) interleaved_row = D;
  }
  // Words that a tile of `n` rows takes.
  OLTR_INLINE int64_t natural(int64_t n) const {
    return in_place && M::row_unit == 1 ? 0 : round_up(n, M::row_unit) * natural_row;
  }
  OLTR_INLINE int64_t interleaved(int64_t n) const {
    return M::group == 1 ? 0 : depth<M>(n) * interleaved_row;
  }

 private:
  static constexpr Dtype word_dtype =
      M::group == 1 ? NativeDtype<typename M::Acc>::value : Dtype::kBFloat16;
};

// Bank or batch rows whose feature is summed over: words along the row.
template <class M, class T = typename M::Acc>
OLTR_INLINE const T* stage_natural(const Layout<M>& layout, Matrix m, int64_t first, int64_t n,
                                   T* out) {
  if (layout.in_place && n % M::row_unit == 0)
    return static_cast<const T*>(m.data) + first * layout.words;
  for (int64_t i = 0; i < n; ++i)
    M::words(m, (first + i) * layout.width, layout.width, layout.words,
             out + i * layout.natural_row);
  return out;
}

// Pairs [begin, end) of the `deep` ones of a matrix, from its rows from 2 begin on, of which there
// are n. Eight pairs at a time go through all their columns: whole lines of many panels, a power of
// two apart, would push each other out of the first cache.
template <class M, class T = typename M::Acc>
OLTR_INLINE void interleave_pairs(const Layout<M>& layout, const T* natural, int64_t n,
                                  int64_t begin, int64_t end, int64_t deep, View<M, T> to) {
  const int64_t words = layout.words / M::planes;
  const Buffer<T> zero(words);
  fill(zero.data(), words, T(0));
  constexpr int64_t kPairs = 8;
  for (int p = 0; p < M::planes; ++p)
    for (int64_t i0 = begin; i0 < end; i0 += kPairs)
      for (int64_t w = 0; w < words; w += M::L)
        for (int64_t i = i0; i < i0 + kPairs && i < end; ++i) {
          const int64_t row = 2 * (i - begin);
          const T* a = natural + row * layout.natural_row + p * words;
          const T* b = a + layout.natural_row;
          M::interleave((row < n ? a : zero.data()) + w, (row + 1 < n ? b : zero.data()) + w,
                        to.at(p * deep + i, 2 * w), to.at(p * deep + i, 2 * w + M::L));
        }
}

// Rows that are summed over: the words of two staged rows become the numbers of one; zeros up to
// the depth that products want. In `out` they begin at word `at` of `room`.
template <class M, class T = typename M::Acc>
OLTR_INLINE View<M, const T> interleave(const Layout<M>& layout, const T* natural, int64_t n,
                                        T* out, int64_t at, int64_t room) {
  if constexpr (M::group == 1) {
    return {natural, layout.interleaved_row, 0};
  } else {
    const View<M> all = view<M>(out, room, layout.interleaved_row);
    const View<M> to = {all.at(at, 0), all.row, all.panel};
    interleave_pairs(layout, natural, n, 0, depth<M>(n) / M::planes, depth<M>(n) / M::planes, to);
    return {to.data, to.row, to.panel};
  }
}

// Rows [first, first + n) of a bank, to be fetched ahead; none where it is absent.
OLTR_INLINE Ahead ahead_of(Matrix m, int64_t first, int64_t n, int64_t width) {
  if (m.data == nullptr || n <= 0) return {};
  const char* data = static_cast<const char*>(m.data);
  const int64_t row = width * dtype_bytes(m.dtype);
  return {data + first * row, data + (first + n) * row};
}

// out[d, r] = in[r, d] for n x width words, by squares that stay in L1; in registers where they are
// whole.
template <class T>
OLTR_INLINE void transpose(const T* in, int64_t in_row, int64_t n, int64_t width, T* out,
                           int64_t out_row) {
  constexpr bool kInRegisters = sizeof(T) == sizeof(float);
  constexpr int64_t kSquare = kInRegisters ? Lanes<float>::n : 16;
  for (int64_t r0 = 0; r0 < n; r0 += kSquare) {
    const int64_t r1 = r0 + kSquare < n ? r0 + kSquare : n;
    for (int64_t d0 = 0; d0 < width; d0 += kSquare) {
      const int64_t d1 = d0 + kSquare < width ? d0 + kSquare : width;
      if constexpr (kInRegisters)
        if (r1 - r0 == kSquare && d1 - d0 == kSquare) {
          Vec<float> square[kSquare];
          for (int64_t i = 0; i < kSquare; ++i) square[i] = load(in + (r0 + i) * in_row + d0);
          transpose_square(square);
          for (int64_t i = 0; i < kSquare; ++i) store(out + (d0 + i) * out_row + r0, square[i]);
          continue;
        }
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t d = d0; d < d1; ++d) out[d * out_row + r] = in[r * in_row + d];
    }
  }
}

// The rows of one batch, in blocks: transposed for products that sum over the feature, and as rows
// for those that sum over the batch.
template <class M>
class RowBlocks {
  using T = typename M::Acc;

 public:
  OLTR_INLINE RowBlocks(Matrix x, int64_t B, int64_t D, int64_t block, bool as_columns,
                        bool as_rows, const Parallel& parallel)
      : layout_(D),
        batch_(B),
        block_(block),
        columns_(as_columns ? round_up(B, block) * layout_.words : 0),
        rows_(as_rows ? div_up(B, block) * depth<M>(block) * layout_.interleaved_row : 0) {
    const int64_t shares = div_up(block, kShare);
    parallel_tasks(parallel, div_up(B, block) * shares, [&](int64_t task) {
      const int64_t i = task / shares, r0 = task % shares * kShare, first = i * block + r0;
      if (r0 >= count(i)) return;
      const int64_t n = clamp(count(i) - r0, 0, kShare), lanes = clamp(width(i) - r0, 0, kShare);
      const bool kept = as_rows && M::group == 1;
      const Layout<M> given = M::group == 1 ? layout_ : Layout<M>(D, {x});
      const Buffer<T> scratch(kept ? 0 : n * given.natural_row);
      T* to_natural = kept ? rows_.data() + first * given.natural_row : scratch.data();
      const T* natural = stage_natural(given, x, first, n, to_natural);
      if (as_columns) {
        const auto out = columns(i);
        const int64_t step = M::panel > 0 ? M::panel : lanes;
        for (int64_t r = 0; r < lanes; r += step) {
          T* panel = const_cast<T*>(out.at(0, r0 + r));
          const int64_t live = n - r < step ? n - r : step;
          transpose(natural + r * given.natural_row, given.natural_row, live, layout_.words, panel,
                    out.row);
          for (int64_t d = 0; d < layout_.words; ++d)
            fill(panel + d * out.row + live, step - live, T(0));
        }
      }
      if constexpr (M::group > 1)
        if (as_rows) {
          const View<M, const T> to = rows(i);
          const int64_t deep = depth<M>(count(i)) / M::planes, end = (r0 + kShare) / 2;
          interleave_pairs(given, natural, n, r0 / 2, end < deep ? end : deep, deep,
                           View<M>{const_cast<T*>(to.data), to.row, to.panel});
        }
    });
  }
  OLTR_INLINE int64_t first(int64_t i) const { return i * block_; }
  OLTR_INLINE int64_t count(int64_t i) const {
    return batch_ - i * block_ < block_ ? batch_ - i * block_ : block_;
  }
  OLTR_INLINE int64_t width(int64_t i) const { return padded(count(i)); }  // with padding lanes
  OLTR_INLINE View<M, const T> columns(int64_t i) const {                  // (words, width)
    const T* data = columns_.data() + i * block_ * layout_.words;
    return view<M>(data, layout_.words, width(i));
  }
  OLTR_INLINE View<M, const T> rows(int64_t i) const {  // (depth of count, padded feature)
    const T* data = rows_.data() + i * depth<M>(block_) * layout_.interleaved_row;
    return view<M>(data, depth<M>(count(i)), layout_.interleaved_row);
  }

 private:
  // Rows that one task stages: whole panels, and pairs of rows up to a whole tile.
  static constexpr int64_t kShare = 32;
  Layout<M> layout_;
  int64_t batch_, block_;
  Buffer<T> columns_, rows_;
};

}  // namespace OLTR_ISA
}  // namespace oltr
