// Distances whose squares leave the accumulator's range. A pass over the bank finds the nearest class
// by products and squares as they come: small ones vanish (some processors take products under 2^-126
// for zero), large ones overflow. A row where that may have happened is measured again, against every
// class, with gaps scaled by a power of two, which rounds nothing.
#pragma once

#include "common/merge.h"

namespace oltr {

// Between `low` and `high` nothing of a square was lost that rounding would not take: a row's
// products are off by 2^-126 each, at most. `up` and `down` bring what is beyond into the middle.
template <class T>
struct Squares;
template <>
struct Squares<float> {
  static constexpr float low = 0x1p-80f, low_root = 0x1p-40f, high = 0x1p120f, high_root = 0x1p60f,
                         up = 0x1p90f, down = 0x1p-90f;
};
template <>
struct Squares<double> {
  static constexpr double low = 0x1p-900, low_root = 0x1p-450, high = 0x1p1000, high_root = 0x1p500,
                          up = 0x1p600, down = 0x1p-600;
};

template <class T>
OLTR_HD bool in_range(T square) {
  return square >= Squares<T>::low && square <= Squares<T>::high;
}
// What gaps are scaled by whose squares sum up to this; 1 where it is in range, or NaN.
template <class T>
OLTR_HD T gap_scale(T square) {
  return square < Squares<T>::low    ? Squares<T>::up
         : square > Squares<T>::high ? Squares<T>::down
                                     : T(1);
}
// s (a - b); a - b itself may overflow where s is small. `V` may be a scalar or a SIMD vector.
template <class V, class T>
OLTR_HD V scaled_gap(V a, V b, T s) {
  return s < T(1) ? a * s - b * s : (a - b) * s;
}

// The nearest class by gaps scaled by s: the distance is sqrt(distance2) / s.
template <class T>
struct Nearby {
  T distance2, scale;
  int64_t index;
};
// `scan(s)` measures every class. It starts at the scale of `distance2`, at which some class seemed to
// lie, and goes on to larger ones while what it finds is too near to be seen.
template <class T, class Scan>
OLTR_HD Nearby<T> nearest_by_scale(T distance2, Scan scan) {
  Nearby<T> found = scan(gap_scale(distance2));
  while (found.distance2 < Squares<T>::low && found.scale < Squares<T>::up)
    found = scan(found.scale * Squares<T>::up);
  return found;
}

// The gradient g of a distance |a - b| = length / scale pulls at its ends by g (a - b) / |a - b|, at each
// coordinate. Zero where they coincide.
template <class T>
struct Pull {
  T weight, scale, inverse;
  OLTR_HD T operator()(T a, T b) const { return weight * (scaled_gap(a, b, scale) * inverse); }
};
template <class T>
OLTR_HD Pull<T> pull_of(T grad, T length, T scale) {
  if (length == T(0)) return {0, 1, 1};
  if (scale == T(1)) return {grad / length, 1, 1};
  return {grad, scale, 1 / length};  // their quotient may overflow
}

}  // namespace oltr
