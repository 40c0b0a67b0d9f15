// SIMD lanes by compiler vector types: one source for every instruction set. Included only by the
// isa_*.cpp files, which set OLTR_ISA (a namespace) and OLTR_VECTOR_BYTES first.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

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
// A cache line past the caches, where the instruction set has it. `to` is aligned to it.
constexpr bool kStreams = OLTR_VECTOR_BYTES == 64;
OLTR_INLINE void stream_line(void* to, const void* from) {
#if OLTR_VECTOR_BYTES == 64
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_load_si512(from));
#else
  __builtin_memcpy(to, from, 64);
#endif
}
// Makes them visible to other threads in the order of other stores.
OLTR_INLINE void finish_streams() {
#if OLTR_VECTOR_BYTES == 64
  _mm_sfence();
#endif
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
// Where a comparison holds, a bit a lane.
template <class T>
OLTR_INLINE uint32_t lanes_of(typename Lanes<T>::I mask) {
#if OLTR_VECTOR_BYTES == 64
  return sizeof(T) == 4 ? _mm512_movepi32_mask((__m512i)mask) : _mm512_movepi64_mask((__m512i)mask);
#elif OLTR_VECTOR_BYTES == 32
  return sizeof(T) == 4 ? _mm256_movemask_ps((__m256)mask) : _mm256_movemask_pd((__m256d)mask);
#else
  uint32_t bits = 0;
  for (int lane = 0; lane < Lanes<T>::n; ++lane) bits |= (mask[lane] & 1u) << lane;
  return bits;
#endif
}
// The smallest and the largest of n vectors, `row` apart, each as f makes it of the one in memory;
// NaN is passed over. Four at a time, for one would wait for the one before.
template <class T, bool largest, class F>
OLTR_INLINE Vec<T> extreme(const T* from, int64_t n, int64_t row, Vec<T> start, const F& f) {
  Vec<T> best[4] = {start, start, start, start};
  const auto take = [](Vec<T> v, Vec<T> b) { return (largest ? v > b : v < b) ? v : b; };
  int64_t i = 0;
  for (; i + 4 <= n; i += 4)
    for (int j = 0; j < 4; ++j) best[j] = take(f(i + j, load<T>(from + (i + j) * row)), best[j]);
  for (; i < n; ++i) best[0] = take(f(i, load<T>(from + i * row)), best[0]);
  return take(take(best[0], best[1]), take(best[2], best[3]));
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
  typedef uint32_t U __attribute__((vector_size(OLTR_VECTOR_BYTES)));  // far below 0 it wraps
  U bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127u << 23);
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

// The lanes of two vectors, as constants choose: lane i of the result is lane pick[i] of a then b.
template <int... pick>
OLTR_INLINE Vec<float> shuffled(Vec<float> a, Vec<float> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, pick...);
#else
  return __builtin_shuffle(a, b, Lanes<float>::I{pick...});
#endif
}
// Lanes of a and b by turns: those of their first halves, or of their second.
template <bool second, int... lane>
OLTR_INLINE Vec<float> zipped(Vec<float> a, Vec<float> b, std::integer_sequence<int, lane...>) {
  constexpr int L = Lanes<float>::n;
  return shuffled<(lane / 2 + lane % 2 * L + second * L / 2)...>(a, b);
}
// Blocks of `step` lanes of two rows change places across the diagonal: the first row's, or the
// second's.
template <int step, bool second, int... lane>
OLTR_INLINE Vec<float> exchanged(Vec<float> a, Vec<float> b, std::integer_sequence<int, lane...>) {
  constexpr int L = Lanes<float>::n;
  return shuffled<((lane & step) != 0 ? L + lane - !second * step : lane + second * step)...>(a, b);
}
// rows[i][j] = rows[j][i]
template <int step = Lanes<float>::n / 2>
OLTR_INLINE void transpose_square(Vec<float>* rows) {
  constexpr int L = Lanes<float>::n;
  constexpr std::make_integer_sequence<int, L> lanes;
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) {
    if ((i & step) != 0) continue;
    const Vec<float> a = rows[i], b = rows[i + step];
    rows[i] = exchanged<step, false>(a, b, lanes);
    rows[i + step] = exchanged<step, true>(a, b, lanes);
  }
  if constexpr (step > 1) transpose_square<step / 2>(rows);
}

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
