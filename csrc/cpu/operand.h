// What a product multiplies. An operand is an array of words of the accumulator type; a word holds
// one number, or two consecutive bfloat16 of the summed index where the processor multiplies such
// pairs. Only this file knows: the product and the passes over the bank count words.
#pragma once

#include "common/dtype.h"
#include "cpu/simd.h"

namespace oltr {
namespace OLTR_ISA {

// A word is a number, products are exact in it.
template <class T>
struct Exact {
  using Acc = T;
  static constexpr int group = 1;  // numbers in a word

  static OLTR_INLINE Vec<T> multiply_add(Vec<T> acc, T a, Vec<T> b) { return acc + a * b; }

  static OLTR_INLINE void words(Matrix m, int64_t first, int64_t n, T* out) {
    convert_in(m.data, m.dtype, first, n, out);
  }
  static OLTR_INLINE T norm2(const T* row, int64_t n) { return dot(row, row, n); }

  // Classes summed over: logits (count, block) as they are.
  static OLTR_INLINE const T* down(const T* scores, int64_t, int64_t, T*) { return scores; }
  // Rows summed over.
  static OLTR_INLINE const T* across(const T* scores, int64_t, int64_t, T*) { return scores; }
};

#if defined(OLTR_BF16_DOT)
// A word is two bfloat16, the first in the low half; the processor sums both products in float.
struct Pairs {
  using Acc = float;
  static constexpr int group = 2;
  typedef Lanes<float>::I I;
  typedef uint64_t U __attribute__((vector_size(OLTR_VECTOR_BYTES)));
  typedef uint32_t Half __attribute__((vector_size(OLTR_VECTOR_BYTES / 2)));
  static constexpr int L = Lanes<float>::n;

  static OLTR_INLINE Vec<float> multiply_add(Vec<float> acc, float a, Vec<float> b) {
#if defined(__aarch64__)
    asm("bfdot %0.4s, %1.8h, %2.2h[0]" : "+w"(acc) : "w"(b), "w"(a));
    return acc;
#else
    return (Vec<float>)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
#endif
  }

  // Round to nearest even, in place: the bfloat16 is the upper half of each lane.
  static OLTR_INLINE I rounded(Vec<float> v) {
    I bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    const I up = bits + 0x7fff + ((bits >> 16) & 1);
    return v == v ? up : (bits | 0x400000);
  }

  static OLTR_INLINE void words(Matrix m, int64_t first, int64_t n, float* out) {
    if (m.dtype == Dtype::kBFloat16) {
      __builtin_memcpy(out, static_cast<const uint16_t*>(m.data) + first,
                       static_cast<size_t>(n) * sizeof(uint16_t));
      if (n % 2 != 0) __builtin_memset(reinterpret_cast<uint16_t*>(out) + n, 0, sizeof(uint16_t));
      return;
    }
    float line[2 * L];
    for (int64_t i = 0; i < n; i += 2 * L) {
      const int64_t live = n - i < 2 * L ? n - i : 2 * L;
      if (live < 2 * L) fill(line, int64_t{2 * L}, 0.f);
      convert_in(m.data, m.dtype, first + i, live, line);
      for (int64_t j = 0; 2 * j < live; ++j) {
        const uint32_t low = float_to_bfloat16(line[2 * j]);
        const uint32_t high = float_to_bfloat16(line[2 * j + 1]);
        out[i / 2 + j] = bits_to_float(low | high << 16);
      }
    }
  }
  static OLTR_INLINE float norm2(const float* row, int64_t n) {
    Vec<float> sum[2] = {};
    for (int64_t i = 0; i < n; i += L) {
      I bits;
      __builtin_memcpy(&bits, row + i, sizeof bits);
      const I low = bits << 16, high = bits & static_cast<int32_t>(0xffff0000);
      Vec<float> a, b;
      __builtin_memcpy(&a, &low, sizeof a);
      __builtin_memcpy(&b, &high, sizeof b);
      sum[0] += a * a;
      sum[1] += b * b;
    }
    return sum_lanes<float>(sum[0] + sum[1]);
  }

  // Words of scores (c, r) and (c + 1, r): (count / 2, block).
  static OLTR_INLINE const float* down(const float* scores, int64_t count, int64_t block,
                                       float* out) {
    for (int64_t c = 0; c < count; c += 2)
      for (int64_t r = 0; r < block; r += L) {
        const I low = rounded(load<float>(scores + c * block + r));
        const I high = c + 1 < count ? rounded(load<float>(scores + (c + 1) * block + r)) : I{};
        const I both = ((low >> 16) & 0xffff) | (high & static_cast<int32_t>(0xffff0000));
        __builtin_memcpy(out + c / 2 * block + r, &both, sizeof both);
      }
    return out;
  }
  // Words of scores (c, r) and (c, r + 1): (count, block / 2).
  static OLTR_INLINE const float* across(const float* scores, int64_t count, int64_t block,
                                         float* out) {
    for (int64_t i = 0; i < count * block; i += L) {
      const I bits = rounded(load<float>(scores + i));
      U wide;
      __builtin_memcpy(&wide, &bits, sizeof wide);
      const Half both =
          __builtin_convertvector(((wide >> 16) & 0xffff) | ((wide >> 32) & 0xffff0000u), Half);
      __builtin_memcpy(out + i / 2, &both, sizeof both);
    }
    return out;
  }
  // Two rows of n words, (d, d + 1) in a word, become 2n words that hold both rows of one d each.
  static OLTR_INLINE void interleave(const float* a, const float* b, int64_t n, float* out) {
    for (int64_t i = 0; i < n; i += L / 2) {
      Half ha, hb;
      __builtin_memcpy(&ha, a + i, sizeof ha);
      __builtin_memcpy(&hb, b + i, sizeof hb);
      const U wa = __builtin_convertvector(ha, U), wb = __builtin_convertvector(hb, U);
      const U both = (wa & 0xffff) | (wb & 0xffff) << 16 | (wa >> 16) << 32 | (wb >> 16) << 48;
      __builtin_memcpy(out + 2 * i, &both, sizeof both);
    }
  }
};
#endif

}  // namespace OLTR_ISA
}  // namespace oltr
