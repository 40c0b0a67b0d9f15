// Rows whose nearest class the pass over the bank may have missed: see common/distance.h. A warp a row.
#pragma once

#include "common/distance.h"
#include "cuda/device.h"

namespace oltr::cuda {

// sum (s (a - b))^2, in every lane.
template <class S>
__device__ Acc<S> scaled_distance2(const S* a, const S* b, int64_t width, Acc<S> s) {
  return warp_sum<Acc<S>>(width, [&](int64_t i) {
    const Acc<S> gap = scaled_gap(widen(a[i]), widen(b[i]), s);
    return gap * gap;
  });
}

// On the centroid itself, and not so small that a product could have missed a lower class there.
template <class S>
__device__ bool coincide(const S* a, const S* b, int64_t width) {
  using T = Acc<S>;
  bool apart = false;
  T largest = 0;
  for (int64_t i = lane_index(); i < width; i += kWarp) {
    const T v = widen(a[i]);
    apart |= v != widen(b[i]);
    largest = Largest()(largest, v < 0 ? -v : v);
  }
  if (__ballot_sync(kAllLanes, apart) != 0) return false;
  largest = warp_reduce(largest, Largest());
  return largest == T(0) || largest >= Squares<T>::low_root;
}

// The nearest class of row x, which seems to lie at (distance2, index): the same where that is in
// range. Where products may have overflowed the pass has measured every class.
template <class S, class T = Acc<S>>
__device__ Nearby<T> measured(const S* x, const S* memory, int64_t classes, int64_t width,
                              T distance2, int64_t index) {
  if (in_range(distance2) || distance2 != distance2) return {distance2, 1, index};
  if (distance2 == T(0) && coincide(x, memory + index * width, width)) return {T(0), 1, index};
  return nearest_by_scale(distance2, [&](T s) {
    Nearby<T> found{Identity<T>::distance2, s, Identity<T>::index};
    for (int64_t c = 0; c < classes; ++c) {
      const T d2 = scaled_distance2(x, memory + c * width, width, s);
      if (!closer(d2, c, found.distance2, found.index)) continue;
      found.distance2 = d2;
      found.index = c;
    }
    return found;
  });
}

// |a - b| is length / scale, whatever its size.
template <class T>
struct Gap {
  T length, scale;
};
template <class S, class T = Acc<S>>
__device__ Gap<T> gap_between(const S* a, const S* b, int64_t width) {
  T square = scaled_distance2(a, b, width, T(1));
  const T s = gap_scale(square);
  if (s != T(1)) square = scaled_distance2(a, b, width, s);
  return {sqrt(square), s};
}

}  // namespace oltr::cuda
