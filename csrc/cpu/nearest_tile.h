// The nearest rows of one staged tile. The product |c|^2/2 - x.c only *selects*: every class within
// its rounding error of the best is measured as sum (x-c)^2, so the winner is the true one.
#pragma once

#include "cpu/panels.h"

namespace oltr {
namespace OLTR_ISA {

// What one block of rows knows of its nearest class so far.
template <class T>
struct NearestState {
  T* best;           // (block) smallest score
  T* distance2;      // (block) of the nearest of those measured
  int64_t* index;    // (block) its class
  T* score;          // (block) of a class that may be nearer,
  int64_t* pending;  // (block) which; -1: there is none
};

template <class M>
struct NearestTile {
  using T = typename M::Acc;
  View<M> scores;   // (count, block): x.c on entry, |c|^2/2 - x.c after
  const T* norms2;  // (count) of the staged words
  T largest;        // of the classes so far: the best may have lost that much to rounding
  Matrix memory;    // (C, D) for the measurement
  const T* x;       // (rows, D)
  const T* length;  // (block) |x|
  int64_t first, count, rows, block, width;
  NearestState<T> state;

  OLTR_INLINE void measure(int64_t c, int64_t r, T* scratch) const {
    const T* centroid = OLTR_ISA::rows(memory, first + c, 1, width, scratch);
    const T d2 = squared_distance(x + r * width, centroid, width);
    if (closer(d2, first + c, state.distance2[r], state.index[r])) {
      state.distance2[r] = d2;
      state.index[r] = first + c;
    }
  }

  // How far rounding can set two scores apart per unit of |x| |c| + |c|^2 / 2: the sums' own error,
  // half a bit for each of the additions that a product passes through (those of a piece, then one a
  // piece; a lane of |c|^2 has fewer), and that of rounding numbers, a half bit a plane: 2^-8 a
  // product with one plane, 2^-16 with two and the smallest of their four products left out. Nothing
  // of it averages out where coordinates are alike, for then all additions round the same way, nor
  // where one is far larger than the others.
  OLTR_INLINE T unit() const {
    const int64_t pieces = (M::planes == 1 ? 1 : 3) * div_up(width, M::piece);
    const int64_t additions = (width < M::piece ? width : M::piece) + pieces + width / Lanes<T>::n;
    const T sum = std::numeric_limits<T>::epsilon() * static_cast<T>(32 + additions);
    if (M::group == 1 || memory.dtype == Dtype::kBFloat16) return sum;
    return sum + (M::planes == 1 ? T(1.0 / 120) : T(1.0 / 32000));
  }

  OLTR_INLINE void run() const {
    constexpr int L = Lanes<T>::n;
    const Buffer<T> scratch(memory.dtype == NativeDtype<T>::value ? 0 : width);
    for (int64_t c = 0; c < count; ++c)
      if (norms2[c] != norms2[c])  // a NaN centroid wins every row, as in torch.min
        for (int64_t r = 0; r < rows; ++r) measure(c, r, scratch.data());
    const T norm = std::sqrt(largest), half = largest / 2, error = unit();
    for (int64_t r = 0; r < block; r += L) {
      const Vec<T> low = extreme<T, false>(scores.at(0, r), count, scores.row,
                                           splat(std::numeric_limits<T>::infinity()),
                                           [&](int64_t c, Vec<T> product) {
                                             const Vec<T> s = norms2[c] / 2 - product;
                                             store<T>(scores.at(c, r), s);
                                             return s;
                                           });
      const Vec<T> before = load<T>(state.best + r);
      const Vec<T> after = low < before ? low : before;
      store<T>(state.best + r, after);
      const Vec<T> doubt = error * (load<T>(length + r) * norm + half), limit = after + doubt;
      if (lanes_of<T>(low <= limit) == 0) continue;
      for (int64_t c = 0; c < count; ++c) {
        uint32_t near = lanes_of<T>(load<T>(scores.at(c, r)) <= limit);
        for (; near != 0; near &= near - 1) {
          const int lane = __builtin_ctz(near);
          if (r + lane < rows)
            consider(c, r + lane, *scores.at(c, r + lane), doubt[lane], scratch.data());
        }
      }
    }
  }

  // Most classes that were the best for a while are beaten beyond doubt soon after: one is measured
  // only once another comes within doubt of it, or at the end.
  OLTR_INLINE void consider(int64_t c, int64_t r, T score, T doubt, T* scratch) const {
    const bool some = state.pending[r] >= 0;
    if (some && score > state.score[r] + doubt) return;
    if (some && state.score[r] <= score + doubt) {
      measure(state.pending[r] - first, r, scratch);
      measure(c, r, scratch);
      state.pending[r] = -1;
      return;
    }
    state.pending[r] = first + c;
    state.score[r] = score;
  }
  OLTR_INLINE void finish() const {
    const Buffer<T> scratch(memory.dtype == NativeDtype<T>::value ? 0 : width);
    for (int64_t r = 0; r < rows; ++r)
      if (state.pending[r] >= 0) measure(state.pending[r] - first, r, scratch.data());
  }
};

}  // namespace OLTR_ISA
}  // namespace oltr
