// The nearest rows of one staged tile. The product |c|^2/2 - x.c only *selects*: every class within
// its rounding error of the best is measured as sum (x-c)^2, so the winner is the true one.
#pragma once

#include "cpu/panels.h"

namespace oltr {
namespace OLTR_ISA {

// What one block of rows knows of its nearest class so far.
template <class T>
struct NearestState {
  T* best;         // (block) smallest score
  T* distance2;    // (block)
  int64_t* index;  // (block)
};

template <class M>
struct NearestTile {
  using T = typename M::Acc;
  T* scores;        // (count, block): x.c on entry, |c|^2/2 - x.c after
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
  // and that of numbers rounded to a pair's half, which is 2^-8 a product. Nothing of it averages
  // out where one coordinate is far larger than the others.
  OLTR_INLINE T unit() const {
    const T root = std::sqrt(static_cast<T>(width));
    const T sum = 4 * std::numeric_limits<T>::epsilon() * (8 + root);
    const bool rounding = M::group > 1 && memory.dtype != Dtype::kBFloat16;
    return rounding ? sum + T(1.0 / 120) : sum;
  }

  OLTR_INLINE void run() const {
    constexpr int L = Lanes<T>::n;
    const Buffer<T> scratch(memory.dtype == NativeDtype<T>::value ? 0 : width);
    for (int64_t c = 0; c < count; ++c)
      if (norms2[c] != norms2[c])  // a NaN centroid wins every row, as in torch.min
        for (int64_t r = 0; r < rows; ++r) measure(c, r, scratch.data());
    const T norm = std::sqrt(largest), half = largest / 2, error = unit();
    for (int64_t r = 0; r < block; r += L) {
      Vec<T> low = splat(std::numeric_limits<T>::infinity());
      for (int64_t c = 0; c < count; ++c) {
        const Vec<T> s = norms2[c] / 2 - load<T>(scores + c * block + r);
        store<T>(scores + c * block + r, s);
        low = s < low ? s : low;
      }
      const Vec<T> before = load<T>(state.best + r);
      const Vec<T> after = low < before ? low : before;
      store<T>(state.best + r, after);
      const Vec<T> limit = after + error * (load<T>(length + r) * norm + half);
      if (!any<T>(low <= limit)) continue;
      for (int64_t c = 0; c < count; ++c) {
        const auto near = load<T>(scores + c * block + r) <= limit;
        if (!any<T>(near)) continue;
        for (int lane = 0; lane < L && r + lane < rows; ++lane)
          if (near[lane]) measure(c, r + lane, scratch.data());
      }
    }
  }
};

}  // namespace OLTR_ISA
}  // namespace oltr
