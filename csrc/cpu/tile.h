// The processor's matrix tiles behind one small interface: eight registers of 16 rows by 16 words,
// and one operation, "16 x 16 floats += A (16 x 16 words) B (16 words x 16)" where a word is a pair
// of bfloat16. Every tile is full: operands are padded (panels.h), so one configuration does.
//
// Two implementations. The instructions are written as assembler, so that a register's number may
// be a template argument (compilers' own functions want a literal) and only the assembler must know
// them. The twin does in plain C++ what the instruction does, bit by bit; it lets the tests run all
// else in every sanitizer and on every processor, and is never built into the extension.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "cpu/simd.h"

namespace oltr {
namespace OLTR_ISA {

constexpr int64_t kTile = 16;  // rows of a tile, its words in a row

#if defined(OLTR_TILE_TWIN)

// Products flush subnormal operands, products and sums to zero, and round to nearest, whatever the
// thread's own mode: first the even and the odd numbers of all pairs by themselves, then their sum,
// then that onto C.
struct Tile {
  struct Register {
    uint32_t word[kTile][kTile];
  };
  static Register& at(int t) {
    static thread_local Register registers[8];
    return registers[t];
  }
  template <int T>
  static void zero() {
    at(T) = Register{};
  }
  template <int T, bool streamed = false>
  static void load(const float* from, int64_t row) {
    for (int64_t i = 0; i < kTile; ++i)
      __builtin_memcpy(at(T).word[i], from + i * row, sizeof at(T).word[i]);
  }
  template <int T>
  static void store(float* to, int64_t row) {
    for (int64_t i = 0; i < kTile; ++i)
      __builtin_memcpy(to + i * row, at(T).word[i], sizeof at(T).word[i]);
  }
  // Registers alone, a thread's own: sanitizers, which would make tests take minutes, look elsewhere.
  template <int C, int A, int B>
  __attribute__((no_sanitize("address", "undefined", "thread"))) static void multiply() {
    float a[2][kTile][kTile], b[2][kTile][kTile];  // the even and the odd numbers
    const Register &from_a = at(A), &from_b = at(B);
    Register& to = at(C);
    for (int64_t i = 0; i < kTile; ++i)
      for (int64_t j = 0; j < kTile; ++j)
        for (int odd = 0; odd < 2; ++odd) {
          const uint32_t high = 0xffff0000u;
          a[odd][i][j] = flushed(odd != 0 ? from_a.word[i][j] & high : from_a.word[i][j] << 16);
          b[odd][i][j] = flushed(odd != 0 ? from_b.word[i][j] & high : from_b.word[i][j] << 16);
        }
    for (int64_t i = 0; i < kTile; ++i)
      for (int64_t j = 0; j < kTile; ++j) {
        float sum[2] = {};
        for (int64_t k = 0; k < kTile; ++k)  // one rounding for product and sum
          for (int odd = 0; odd < 2; ++odd)
            sum[odd] = flushed(bits(__builtin_fmaf(a[odd][i][k], b[odd][k][j], sum[odd])));
        const float both = flushed(bits(sum[0] + sum[1]));
        to.word[i][j] = bits(flushed(bits(flushed(to.word[i][j]) + both)));
      }
  }

 private:
  static OLTR_INLINE uint32_t bits(float f) {
    union {
      float f;
      uint32_t u;
    } both = {f};
    return both.u;
  }
  static OLTR_INLINE float flushed(uint32_t u) {
    union {
      uint32_t u;
      float f;
    } both = {(u & 0x7f800000u) == 0 ? u & 0x80000000u : u};
    return both.f;
  }
};

struct TileSession {
  TileSession() {}
};

#else

struct Tile {
  template <int T>
  static OLTR_INLINE void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(T));
  }
  // `streamed`: what is read once, past the first cache, so that the other operand stays there.
  template <int T, bool streamed = false>
  static OLTR_INLINE void load(const float* from, int64_t row) {
    if constexpr (streamed)
      asm volatile("tileloaddt1 (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(row * 4),
                   "m"(*(const float (*)[])from));
    else
      asm volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(row * 4),
                   "m"(*(const float (*)[])from));
  }
  template <int T>
  static OLTR_INLINE void store(float* to, int64_t row) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(row * 4) : "memory");
  }
  template <int C, int A, int B>
  static OLTR_INLINE void multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
  }
};

// Tiles are a thread's own: configured when a task begins and given back when it ends, so that a
// thread between tasks has no state of theirs to save.
class TileSession {
 public:
  OLTR_INLINE TileSession() {
    struct {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } shape;
    for (int t = 0; t < 8; ++t) shape.bytes[t] = 4 * kTile, shape.rows[t] = kTile;
    asm volatile("ldtilecfg %0" ::"m"(shape));
  }
  OLTR_INLINE ~TileSession() { asm volatile("tilerelease"); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

#endif

}  // namespace OLTR_ISA
}  // namespace oltr
