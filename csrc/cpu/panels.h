// Operands of the products, staged: rows of the batch once a call, rows of the bank tile by tile.
//
// Staging a tile costs one copy, a hundredth of the products that read it. It converts the type,
// fills the last vector with zeros, so that no product has a tail, and takes the rows off the
// powers of two: rows 4 KB apart share a cache set, and a product reads up to 96 rows at a time.
#pragma once

#include "cpu/product.h"
#include "cpu/rows.h"

namespace oltr {
namespace OLTR_ISA {

constexpr int64_t kPad = 16;  // numbers; the widest vector, half of one in float64

OLTR_INLINE int64_t padded(int64_t width) { return round_up(width, kPad); }

// The width of a feature in words, and the distance of two staged rows.
template <class M>
struct Layout {
  int64_t width, full, words;            // numbers, padded numbers, words along the feature
  int64_t natural_row, interleaved_row;  // strides in words
  bool in_place = false;
  OLTR_INLINE explicit Layout(int64_t D)
      : width(D),
        full(round_up(D, kPad * M::group)),
        words(full / M::group),
        natural_row(words + kPad),
        interleaved_row(full + kPad) {}
  // For banks of this type: read where they lie when they are words already and need no padding.
  OLTR_INLINE Layout(int64_t D, Dtype dtype) : Layout(D) {
    in_place = M::group == 1 && dtype == NativeDtype<typename M::Acc>::value && full == D;
    if (in_place) natural_row = interleaved_row = D;
  }
  // Words that a tile of `n` rows takes.
  OLTR_INLINE int64_t natural(int64_t n) const { return in_place ? 0 : n * natural_row; }
  OLTR_INLINE int64_t interleaved(int64_t n) const {
    return M::group == 1 ? 0 : div_up(n, M::group) * interleaved_row;
  }
};

// Bank or batch rows whose feature is summed over: words along the row.
template <class M, class T = typename M::Acc>
OLTR_INLINE const T* stage_natural(const Layout<M>& layout, Matrix m, int64_t first, int64_t n,
                                   T* out) {
  if (layout.in_place) return static_cast<const T*>(m.data) + first * layout.width;
  const int64_t used = div_up(layout.width, M::group);
  for (int64_t i = 0; i < n; ++i) {
    T* row = out + i * layout.natural_row;
    M::words(m, (first + i) * layout.width, layout.width, row);
    fill(row + used, layout.words - used, T(0));
  }
  return out;
}

// Rows that are summed over: the words of `group` staged rows become the numbers of one.
template <class M, class T = typename M::Acc>
OLTR_INLINE const T* interleave(const Layout<M>& layout, const T* natural, int64_t n, T* out) {
  if constexpr (M::group == 1) {
    return natural;
  } else {
    const Buffer<T> zero(n % 2 != 0 ? layout.words : 0);
    if (n % 2 != 0) fill(zero.data(), layout.words, T(0));
    for (int64_t i = 0; i < n; i += 2) {
      const T* a = natural + i * layout.natural_row;
      const T* b = i + 1 < n ? a + layout.natural_row : zero.data();
      M::interleave(a, b, layout.words, out + i / 2 * layout.interleaved_row);
    }
    return out;
  }
}

// Rows [first, first + n) of a bank, to be fetched ahead; none where it is absent.
OLTR_INLINE Ahead ahead_of(Matrix m, int64_t first, int64_t n, int64_t width) {
  if (m.data == nullptr || n <= 0) return {};
  const char* data = static_cast<const char*>(m.data);
  const int64_t row = width * dtype_bytes(m.dtype);
  return {data + first * row, data + (first + n) * row};
}

// out[d, r] = in[r, d] for n x count words, by squares that stay in L1.
template <class T>
OLTR_INLINE void transpose(const T* in, int64_t in_row, int64_t n, int64_t width, T* out,
                           int64_t out_row) {
  constexpr int64_t kSquare = 16;
  for (int64_t r0 = 0; r0 < n; r0 += kSquare) {
    const int64_t r1 = r0 + kSquare < n ? r0 + kSquare : n;
    for (int64_t d0 = 0; d0 < width; d0 += kSquare) {
      const int64_t d1 = d0 + kSquare < width ? d0 + kSquare : width;
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
        rows_(as_rows ? round_up(B, 2) / M::group * layout_.interleaved_row : 0) {
    parallel_tasks(parallel, div_up(B, block), [&](int64_t i) {
      const int64_t first = i * block, n = count(i), lanes = width(i);
      const bool in_place = as_rows && M::group == 1;
      const Buffer<T> scratch(in_place ? 0 : n * layout_.natural_row);
      T* natural = in_place ? rows_.data() + first * layout_.natural_row : scratch.data();
      stage_natural(layout_, x, first, n, natural);
      if (as_columns) {
        T* out = columns_.data() + first * layout_.words;
        transpose(natural, layout_.natural_row, n, layout_.words, out, lanes);
        for (int64_t d = 0; d < layout_.words; ++d) fill(out + d * lanes + n, lanes - n, T(0));
      }
      if (as_rows && !in_place) interleave(layout_, natural, n, const_cast<T*>(rows(i)));
    });
  }
  OLTR_INLINE int64_t first(int64_t i) const { return i * block_; }
  OLTR_INLINE int64_t count(int64_t i) const {
    return batch_ - i * block_ < block_ ? batch_ - i * block_ : block_;
  }
  OLTR_INLINE int64_t width(int64_t i) const { return padded(count(i)); }  // with padding lanes
  OLTR_INLINE const T* columns(int64_t i) const {                          // (words, width)
    return columns_.data() + i * block_ * layout_.words;
  }
  OLTR_INLINE const T* rows(int64_t i) const {  // (count / group, interleaved_row)
    return rows_.data() + i * block_ / M::group * layout_.interleaved_row;
  }

 private:
  Layout<M> layout_;
  int64_t batch_, block_;
  Buffer<T> columns_, rows_;
};

}  // namespace OLTR_ISA
}  // namespace oltr
