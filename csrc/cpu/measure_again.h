// Rows whose nearest class the pass over the bank may have missed: see common/distance.h.
#pragma once

#include "common/distance.h"
#include "cpu/rows.h"

namespace oltr {
namespace OLTR_ISA {

// sum (s (a - b))^2
template <class T>
OLTR_INLINE T scaled_distance2(const T* a, const T* b, int64_t n, T s) {
  constexpr int L = Lanes<T>::n;
  Vec<T> sum = {};
  int64_t i = 0;
  for (; i + L <= n; i += L) {
    const Vec<T> d = scaled_gap(load(a + i), load(b + i), s);
    sum += d * d;
  }
  T rest = 0;
  for (; i < n; ++i) {
    const T d = scaled_gap(a[i], b[i], s);
    rest += d * d;
  }
  return sum_lanes<T>(sum) + rest;
}

// |a - b| is length / scale, whatever its size.
template <class T>
struct Gap {
  T length, scale;
};
template <class T>
OLTR_INLINE Gap<T> gap_between(const T* a, const T* b, int64_t n) {
  const T square = squared_distance(a, b, n), s = gap_scale(square);
  return {std::sqrt(s == T(1) ? square : scaled_distance2(a, b, n, s)), s};
}

// On the centroid itself, and not so small that a product could have missed a lower class there.
template <class T>
OLTR_INLINE bool coincide(const T* a, const T* b, int64_t n) {
  T largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (a[i] != b[i]) return false;
    const T size = std::abs(a[i]);
    largest = size > largest ? size : largest;
  }
  return largest == T(0) || largest >= Squares<T>::low_root;
}

// The nearest class of a row, which has this length and seems to lie at (distance2, index).
template <class T>
static Nearby<T> measure_again(const T* x, T length, Matrix memory, Sizes size, T distance2,
                               int64_t index) {
  const int64_t D = size.width;
  const Buffer<T> scratch(memory.dtype == NativeDtype<T>::value ? 0 : D);
  const auto centroid = [&](int64_t c) { return rows(memory, c, 1, D, scratch.data()); };
  const bool nan = distance2 != distance2 && length <= Squares<T>::high_root;
  if (nan || (distance2 == T(0) && coincide(x, centroid(index), D))) return {distance2, 1, index};
  return nearest_by_scale(distance2, [&](T s) {
    Nearby<T> found{Identity<T>::distance2, s, Identity<T>::index};
    for (int64_t c = 0; c < size.classes && found.distance2 == found.distance2; ++c) {
      const T d2 = scaled_distance2(x, centroid(c), D, s);
      if (!closer(d2, c, found.distance2, found.index)) continue;
      found.distance2 = d2;
      found.index = c;
    }
    return found;
  });
}

}  // namespace OLTR_ISA
}  // namespace oltr
