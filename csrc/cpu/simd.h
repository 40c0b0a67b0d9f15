// SIMD lanes by compiler vector types: one source for every instruction set. Included only by the
// isa_*.cpp files, which set OLTR_ISA (a namespace) and OLTR_VECTOR_BYTES first.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "common/merge.h"
#include "cpu/scratch.h"

#define OLTR_INLINE inline __attribute__((always_inline))

#if !defined(OLTR_VECTOR_REGISTERS)
#define OLTR_VECTOR_REGISTERS (OLTR_VECTOR_BYTES == 64 ? 32 : 16)
#endif

namespace oltr {
namespace OLTR_ISA {

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float V __attribute__((vector_size(OLTR_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(OLTR_VECTOR_BYTES)));
  static constexpr int n = OLTR_VECTOR_BYTES / 4;
};
template <>
struct Lanes<double> {
  typedef double V __attribute__((vector_size(OLTR_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(OLTR_VECTOR_BYTES)));
  static constexpr int n = OLTR_VECTOR_BYTES / 8;
};

template <class T>
using Vec = typename Lanes<T>::V;

template <class T>
OLTR_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
OLTR_INLINE void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}
template <class T>
OLTR_INLINE Vec<T> splat(T s) {
  return s - Vec<T>{};
}
template <class T>
OLTR_INLINE T sum_lanes(Vec<T> v) {
  T s = 0;
  for (int i = 0; i < Lanes<T>::n; ++i) s += v[i];
  return s;
}
// True when any lane of a comparison holds.
template <class T>
OLTR_INLINE bool any(typename Lanes<T>::I mask) {
  int64_t words[OLTR_VECTOR_BYTES / 8];
  __builtin_memcpy(words, &mask, sizeof mask);
  int64_t all = 0;
  for (int i = 0; i < OLTR_VECTOR_BYTES / 8; ++i) all |= words[i];
  return all != 0;
}

// exp in float to about 1 ulp for x <= 88: 2^n times a polynomial in [-ln2/2, ln2/2] (coefficients
// of Cephes expf). Every exponent here is a logit less a maximum or a log-sum, so none is large.
// Below the smallest normal the result is 0; NaN stays NaN.
OLTR_INLINE Vec<float> exp_lanes(Vec<float> x) {
  typedef Lanes<float>::I I;
  const Vec<float> lowest = splat(-87.33654f);
  const I under = (x < lowest);
  const Vec<float> magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec<float> shifted = x * 1.44269504f + magic;
  const Vec<float> n = shifted - magic;
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec<float> p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * r) * r + r + 1.f;
  // n lies in the low bits of `shifted`: move it to the exponent and add it to that of 1.
  I bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127 << 23);
  Vec<float> power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return under ? Vec<float>{} : p * power;
}
OLTR_INLINE Vec<double> exp_lanes(Vec<double> x) {
  Vec<double> r = {};
  for (int i = 0; i < Lanes<double>::n; ++i) r[i] = __builtin_exp(x[i]);
  return r;
}

// tanh in float to about 2 ulp: a polynomial near 0 (Cephes tanhf), 1 - 2 / (exp(2|x|) + 1) beyond.
OLTR_INLINE Vec<float> tanh_lanes(Vec<float> x) {
  const Vec<float> size = x < 0.f ? -x : x;
  const Vec<float> e = exp_lanes(-2.f * size);
  const Vec<float> far = (1.f - e) / (1.f + e);
  const Vec<float> z = x * x;
  Vec<float> p = splat(-5.70498872745e-3f);
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  p = p * z * x + x;
  return size < 0.625f ? p : x < 0.f ? -far : far;
}
OLTR_INLINE Vec<double> tanh_lanes(Vec<double> x) {
  Vec<double> r = {};
  for (int i = 0; i < Lanes<double>::n; ++i) r[i] = std::tanh(x[i]);
  return r;
}
OLTR_INLINE float exp_scalar(float x) { return __builtin_expf(x); }
OLTR_INLINE double exp_scalar(double x) { return __builtin_exp(x); }

// Uninitialised, cache-line aligned scratch.
template <class T>
class Buffer {
 public:
  OLTR_INLINE explicit Buffer(int64_t n)
      : bytes_(static_cast<size_t>(n) * sizeof(T)),
        data_(static_cast<T*>(scratch_allocate(bytes_))) {}
  ~Buffer() { scratch_free(data_, bytes_); }  // implicit destructors carry no target
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  OLTR_INLINE T* data() const { return data_; }
  OLTR_INLINE T& operator[](int64_t i) const { return data_[i]; }

 private:
  size_t bytes_;
  T* data_;
};

template <class T>
OLTR_INLINE void fill(T* p, int64_t n, T value) {
  for (int64_t i = 0; i < n; ++i) p[i] = value;
}

// sum a_i b_i and sum (a_i - b_i)^2 with four vector accumulators: short sums, little rounding.
template <class T>
OLTR_INLINE T dot(const T* a, const T* b, int64_t n) {
  constexpr int L = Lanes<T>::n;
  Vec<T> s[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int j = 0; j < 4; ++j) s[j] += load(a + i + j * L) * load(b + i + j * L);
  T rest = 0;
  for (; i < n; ++i) rest += a[i] * b[i];
  return sum_lanes<T>((s[0] + s[1]) + (s[2] + s[3])) + rest;
}
template <class T>
OLTR_INLINE T squared_distance(const T* a, const T* b, int64_t n) {
  constexpr int L = Lanes<T>::n;
  Vec<T> s[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= n; i += 4 * L)
    for (int j = 0; j < 4; ++j) {
      const Vec<T> d = load(a + i + j * L) - load(b + i + j * L);
      s[j] += d * d;
    }
  T rest = 0;
  for (; i < n; ++i) {
    const T d = a[i] - b[i];
    rest += d * d;
  }
  return sum_lanes<T>((s[0] + s[1]) + (s[2] + s[3])) + rest;
}

// y += a x
template <class T>
OLTR_INLINE void add_scaled(T* y, T a, const T* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] += a * x[i];
}

}  // namespace OLTR_ISA
}  // namespace oltr
