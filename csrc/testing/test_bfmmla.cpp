// The products of bfloat16 pairs on Arm: bfmmla and bfdot give the same bits, read and write nothing
// beside their operands, and err by no more than the search for the nearest class allows for.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <vector>

#include "cpu/cpu_features.h"
#include "testing/guarded.h"

#if defined(OLTR_NEON_BF16)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("+bf16")
#endif
#define OLTR_ISA test_bfmmla
#define OLTR_BF16_DOT
#define OLTR_VECTOR_BYTES 16
#define OLTR_VECTOR_REGISTERS 32
#include "cpu/product_bfmmla.h"

namespace oltr::testing {
namespace {

using test_bfmmla::ProductArgs;

// By bfmmla from 24 rows on.
void multiply(const ProductArgs<float>& g, int64_t m, int64_t n) {
  test_bfmmla::Ahead none;
  test_bfmmla::lane_product<test_bfmmla::Pairs>(g, m, n, none);
}
// By bfdot.
void multiply_plainly(const ProductArgs<float>& g, int64_t m, int64_t n) {
  test_bfmmla::Ahead none;
  for (int64_t j = 0; j < n; j += 16)
    test_bfmmla::product_columns<test_bfmmla::Pairs, 4>(g, m, j, none);
}

}  // namespace
}  // namespace oltr::testing

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace oltr::testing {
namespace {

// Numbers in a fenced buffer, whose end is where the array ends.
struct Words {
  explicit Words(size_t n) : fenced(n * sizeof(float)) {}
  float* data() { return reinterpret_cast<float*>(fenced.data()); }
  Fenced fenced;
};
uint32_t pair(double low, double high) {
  return float_to_bfloat16(static_cast<float>(low)) |
         uint32_t{float_to_bfloat16(static_cast<float>(high))} << 16;
}
double half(float word, int i) {
  return bfloat16_to_float(static_cast<uint16_t>(float_to_bits(word) >> (16 * i)));
}

struct Strides {
  bool along, down;  // A's words of a row lie together, or those of a column
};

void check(int64_t m, int64_t n, int64_t k, Strides strides, bool accumulate) {
  SCOPED_TRACE(::testing::Message() << m << " x " << n << " x " << k << ", along " << strides.along
                                    << ", down " << strides.down << ", += " << accumulate);
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  // Rows of A end where its columns do, up to the four that are read at once.
  const int64_t a_row = strides.along ? k + 1 : strides.down ? 1 : 2;
  const int64_t a_col = strides.along ? 1 : strides.down ? m + 2 : 2 * m;
  const int64_t b_row = n + 4, c_row = n + 3;
  Words a(static_cast<size_t>((m - 1) * a_row + (k - 1) * a_col + 1));
  Words b(static_cast<size_t>((k - 1) * b_row + n)), got(static_cast<size_t>((m - 1) * c_row + n)),
      plain(static_cast<size_t>((m - 1) * c_row + n));
  const auto words = [&](float* to) {
    const uint32_t bits = pair(normal(random), normal(random));
    std::memcpy(to, &bits, sizeof bits);
  };
  for (int64_t i = 0; i < m; ++i)
    for (int64_t w = 0; w < k; ++w) words(a.data() + i * a_row + w * a_col);
  for (int64_t w = 0; w < k; ++w)
    for (int64_t j = 0; j < n; ++j) words(b.data() + w * b_row + j);
  std::vector<float> before(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      const float start = accumulate ? static_cast<float>(normal(random)) : 0.f;
      before[i * n + j] = start;
      if (accumulate) got.data()[i * c_row + j] = plain.data()[i * c_row + j] = start;
    }

  ProductArgs<float> g{k, a.data(), a_row, a_col, b.data(), b_row, got.data(), c_row, accumulate};
  multiply(g, m, n);
  g.c = plain.data();
  multiply_plainly(g, m, n);

  // Half of what NearestTile allows two scores together.
  const double unit =
      2 * std::numeric_limits<float>::epsilon() * (8 + std::sqrt(static_cast<double>(2 * k)));
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = before[i * n + j], a2 = sum * sum, b2 = 1;
      for (int64_t w = 0; w < k; ++w)
        for (int h = 0; h < 2; ++h) {
          const double p = half(a.data()[i * a_row + w * a_col], h);
          const double q = half(b.data()[w * b_row + j], h);
          sum += p * q;
          a2 += p * p;
          b2 += q * q;
        }
      ASSERT_NEAR(got.data()[i * c_row + j], sum, unit * std::sqrt(a2 * b2)) << i << ", " << j;
      ASSERT_EQ(float_to_bits(got.data()[i * c_row + j]),
                float_to_bits(plain.data()[i * c_row + j]))
          << i << ", " << j;
    }
  // Between the rows of C there is still what lay there.
  for (int64_t i = 0; i + 1 < m; ++i)
    for (int64_t j = n; j < c_row; ++j)
      ASSERT_EQ(float_to_bits(got.data()[i * c_row + j]), 0xffffffffu) << i << ", " << j;
  ASSERT_TRUE(a.fenced.intact() && b.fenced.intact() && got.fenced.intact());
}

TEST(Bfmmla, SameBitsAsBfdot) {
  if (!cpu_features().neon_bf16) GTEST_SKIP() << "this processor has no bfmmla";
  for (const Strides strides : {Strides{true, false}, Strides{false, true}, Strides{false, false}})
    for (const bool accumulate : {false, true})
      for (const int64_t k : {1, 2, 3, 32, 257, 601}) {
        for (const int64_t m : {23, 24, 25, 28, 29, 65}) check(m, 16, k, strides, accumulate);
        check(24, 48, k, strides, accumulate);
        if (HasFatalFailure()) return;
      }
}

// What csrc/README.md says of these instructions: an inexact sum becomes the odd neighbour, and
// numbers below the smallest normal are zero, as operands, products and sums.
TEST(Bfmmla, RoundsToOddAndFlushesSubnormals) {
  if (!cpu_features().neon_bf16) GTEST_SKIP() << "this processor has no bfmmla";
  const struct {
    double start, rest, x, y, want;
  } cases[] = {{1, 0, 0x1p-15, 0x1p-15, 1 + 0x1p-23},
               {1, 0x1p-23, 0x1p-15, 0x1p-15, 1 + 0x1p-23},
               {1, 0, -0x1p-15, 0x1p-15, 1 - 0x1p-24},
               {0, 0, 0x1p-63, 0x1p-63, 0x1p-126},
               {0, 0, 0x1p-64, 0x1p-63, 0},
               {0, 0, 0x1p-127, 1, 0},
               {0x1p-126, 0, 0x1.8p-126, -1, 0}};
  for (const auto& t : cases) {
    // start + rest is the first word's product, to which that of the second is added.
    float a[2 * 24], b[2 * 16], got[24 * 16], plain[24 * 16];
    std::fill_n(a, 24, bits_to_float(pair(t.start, t.rest)));
    std::fill_n(a + 24, 24, bits_to_float(pair(t.x, 0)));
    std::fill_n(b, 16, bits_to_float(pair(1, 1)));
    std::fill_n(b + 16, 16, bits_to_float(pair(t.y, 0)));
    ProductArgs<float> g{2, a, 1, 24, b, 16, got, 16, false};
    multiply(g, 24, 16);
    g.c = plain;
    multiply_plainly(g, 24, 16);
    for (int i = 0; i < 24 * 16; ++i) {
      ASSERT_EQ(got[i], t.want) << t.start + t.rest << " + " << t.x << " * " << t.y;
      ASSERT_EQ(plain[i], t.want) << t.start + t.rest << " + " << t.x << " * " << t.y;
    }
  }
}

}  // namespace
}  // namespace oltr::testing
#endif  // OLTR_NEON_BF16
