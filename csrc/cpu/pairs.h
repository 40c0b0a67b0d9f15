// Words of two bfloat16, the first in the low half: how numbers become words and rows of words
// become operands. What multiplies them is in operand.h (vdpbf16ps) and tile_operand.h (tiles).
#pragma once

#include "common/dtype.h"
#include "cpu/simd.h"

namespace oltr {
namespace OLTR_ISA {

struct PairWords {
  using Acc = float;
  static constexpr int group = 2;  // numbers in a word
  static constexpr int L = Lanes<float>::n;
  typedef Lanes<float>::I I;
  typedef uint64_t U __attribute__((vector_size(OLTR_VECTOR_BYTES)));
  typedef uint32_t Half __attribute__((vector_size(OLTR_VECTOR_BYTES / 2)));

  // Round to nearest even, in place: the bfloat16 is the upper half of each lane.
  static OLTR_INLINE I rounded(Vec<float> v) {
    I bits;
    __builtin_memcpy(&bits, &v, sizeof bits);
    const I up = bits + 0x7fff + ((bits >> 16) & 1);
    return v == v ? up : (bits | 0x400000);
  }
  static OLTR_INLINE Vec<float> upper(I bits) {
    bits &= static_cast<int32_t>(0xffff0000);
    Vec<float> v;
    __builtin_memcpy(&v, &bits, sizeof v);
    return v;
  }
  // What rounding took away.
  static OLTR_INLINE Vec<float> rest(Vec<float> v) { return v - upper(rounded(v)); }

  // L numbers to L / 2 words. Here and in `joined` the processor's own conversion takes subnormal
  // numbers as zero, which all that multiplies words does anyway.
  static OLTR_INLINE void pack(Vec<float> v, float* out) {
#if defined(OLTR_BF16_CONVERT)
    const __m256bh both = _mm512_cvtneps_pbh((__m512)v);
    __builtin_memcpy(out, &both, sizeof both);
#else
    const I bits = rounded(v);
    U wide;
    __builtin_memcpy(&wide, &bits, sizeof wide);
    const Half both =
        __builtin_convertvector(((wide >> 16) & 0xffff) | ((wide >> 32) & 0xffff0000u), Half);
    __builtin_memcpy(out, &both, sizeof both);
#endif
  }
  // The lanes of `low` and `high` side by side: L words.
  static OLTR_INLINE Vec<float> joined(Vec<float> low, Vec<float> high) {
#if defined(OLTR_BF16_CONVERT)
    typedef int16_t Shorts __attribute__((vector_size(64)));
    constexpr Shorts turns = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                              8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
    return (Vec<float>)_mm512_permutexvar_epi16((__m512i)turns, (__m512i)both);
#else
    const I both =
        ((rounded(low) >> 16) & 0xffff) | (rounded(high) & static_cast<int32_t>(0xffff0000));
    Vec<float> v;
    __builtin_memcpy(&v, &both, sizeof v);
    return v;
#endif
  }

  // n numbers of a matrix as words, zeros up to `words` of them: first those rounded, then, with two
  // planes, as many of what rounding took away.
  template <int planes>
  static OLTR_INLINE void fill_words(Matrix m, int64_t first, int64_t n, int64_t words,
                                     float* out) {
    const int64_t deep = words / planes;
    if (planes == 1 && m.dtype == Dtype::kBFloat16) {
      auto* numbers = reinterpret_cast<uint16_t*>(out);
      __builtin_memcpy(out, static_cast<const uint16_t*>(m.data) + first,
                       static_cast<size_t>(n) * sizeof(uint16_t));
      __builtin_memset(numbers + n, 0, static_cast<size_t>(2 * words - n) * sizeof(uint16_t));
      return;
    }
    for (int64_t i = 0; i < 2 * deep; i += L) {
      Vec<float> v = {};
      const int64_t live = n - i < L ? n - i : L;
      if (live == L && m.dtype == Dtype::kFloat32) {
        v = load<float>(static_cast<const float*>(m.data) + first + i);
      } else if (live > 0) {
        float line[L] = {};
        convert_in(m.data, m.dtype, first + i, live, line);
        v = load<float>(line);
      }
      pack(v, out + i / 2);
      if constexpr (planes > 1) pack(rest(v), out + deep + i / 2);
    }
  }

  // The sum of all lanes, by halves.
  template <int step = L / 2>
  static OLTR_INLINE float folded(Vec<float> v) {
    if constexpr (step == 0)
      return v[0];
    else
      return folded<step / 2>(v +
                              exchanged<step, true>(v, v, std::make_integer_sequence<int, L>()));
  }
  // Sum of squares of the numbers that n words hold.
  template <int planes = 1>
  static OLTR_INLINE float words_norm2(const float* words, int64_t n) {
    const int64_t deep = n / planes;
    Vec<float> sum[2] = {};
    for (int64_t i = 0; i < deep; i += L) {
      Vec<float> low = {}, high = {};
      for (int p = 0; p < planes; ++p) {
        I bits;
        __builtin_memcpy(&bits, words + p * deep + i, sizeof bits);
        low += upper(bits << 16);
        high += upper(bits);
      }
      sum[0] += low * low;
      sum[1] += high * high;
    }
    return folded(sum[0] + sum[1]);
  }

  // L words of two rows, (d, d + 1) in a word, become 2L words that hold both rows of one d each.
  static OLTR_INLINE void interleave(const float* a, const float* b, float* low, float* high) {
    constexpr std::make_integer_sequence<int, L> lanes;
    I wa, wb;
    __builtin_memcpy(&wa, a, sizeof wa);
    __builtin_memcpy(&wb, b, sizeof wb);
    const I first = (wa & 0xffff) | (wb << 16);
    const I second = ((wa >> 16) & 0xffff) | (wb & static_cast<int32_t>(0xffff0000));
    Vec<float> even, odd;
    __builtin_memcpy(&even, &first, sizeof even);
    __builtin_memcpy(&odd, &second, sizeof odd);
    store<float>(low, zipped<false>(even, odd, lanes));
    store<float>(high, zipped<true>(even, odd, lanes));
  }
};

}  // namespace OLTR_ISA
}  // namespace oltr
