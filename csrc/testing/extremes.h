// What scaling all features by a power of two may do to the ops that know a distance: nothing but scale
// it. From the smallest numbers of a type to its largest.
#pragma once

#include <initializer_list>
#include <vector>

#include "testing/checks.h"

namespace oltr::testing {

inline Array scaled(const Array& a, int exponent) {
  Array b(a);
  for (double& v : b) v = std::ldexp(v, exponent);
  return b;
}

// Powers of two that keep what `random_array` draws, and distances between it, in a type's range: its
// lowest bit is 2^-6, its largest number 4.
struct Scales {
  Dtype dtype;
  double tolerance;
  std::initializer_list<int> exponents;
};
inline const Scales kScales[] = {
    {Dtype::kFloat32,
     1e-6,
     {-143, -130, -100, -75, -70, -64, -62, -50, -40, -38, 40, 58, 60, 62, 64, 90, 123}},
    {Dtype::kBFloat16, 5e-3, {-127, -120, -100, -66, -64, -62, -50, -40, 58, 62, 64, 123}},
    {Dtype::kFloat16, 1e-3, {-18, -10, 10}},
    {Dtype::kFloat64, 1e-15, {-1068, -700, -540, -520, -450, -448, 498, 512, 700, 1018}}};

// Where tests are slow, and ask for paths more than for numbers, every fourth of them, and the last.
inline std::vector<int> taken(std::initializer_list<int> exponents) {
  std::vector<int> some;
  for (auto k = exponents.begin(); k != exponents.end(); ++k)
    if (!kSlow || (exponents.end() - k) % 4 == 1) some.push_back(*k);
  return some;
}

// The same class, the distance scaled, the gradient the same: to rounding, or half of the smallest
// number where that is more.
inline void expect_nearest_scales(const KernelTable& table, Sizes size) {
  std::mt19937 random(21);
  NearestCentroid typed(size, random);
  const Op& op = typed;
  const size_t on = static_cast<size_t>(size.width) * std::min<int64_t>(3, size.batch);
  std::copy_n(typed.inputs[1].end() - static_cast<int64_t>(on), on, typed.inputs[0].begin());
  const Arrays base = op.inputs, grads = gradients_of(op, random), want = op.naive(base);
  for (const Scales& s : kScales) {
    const Arrays gradient = op.backward(kernels_generic, Dtype::kFloat64, grads);
    for (const int k : taken(s.exponents)) {
      SCOPED_TRACE(label(table, s.dtype, size) + ", scale 2^" + std::to_string(k));
      typed.inputs = {scaled(base[0], k), scaled(base[1], k)};
      const Arrays out = op.forward(table, s.dtype);
      EXPECT_EQ(out[1], want[1]);
      const double least = std::ldexp(1.0, s.dtype == Dtype::kFloat64    ? -1075
                                           : s.dtype == Dtype::kFloat32  ? -150
                                           : s.dtype == Dtype::kBFloat16 ? -134
                                                                         : -25);
      for (size_t b = 0; b < out[0].size(); ++b) {
        const double d = std::ldexp(want[0][b], k);
        ASSERT_NEAR(out[0][b], d, std::max(s.tolerance * d, least)) << "row " << b;
      }
      expect_close(op.backward(table, s.dtype, grads), gradient, 4 * s.tolerance, "gradient");
      if (::testing::Test::HasFailure()) return;
    }
    typed.inputs = base;
  }
}

// Rows and centroids of all sizes in one bank, some centroids twice, some rows on them.
inline void expect_nearest_of_mixed_sizes(const KernelTable& table) {
  const Sizes size{24, 70, 16};
  const int64_t B = size.batch, C = size.classes, D = size.width;
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kBFloat16, Dtype::kFloat64}) {
    const bool wide = dtype == Dtype::kFloat64;
    const int sizes[] = {0,  wide ? -1000 : -120, wide ? -520 : -66, wide ? -450 : -40,
                         62, wide ? 520 : 70,     wide ? 1015 : 120, 0};
    std::mt19937 random(31);
    Array x = random_array(B * D, random), memory = random_array(C * D, random);
    for (int64_t c = 0; c < C; ++c)
      for (int64_t d = 0; d < D; ++d)
        memory[c * D + d] = std::ldexp(memory[c * D + d], sizes[c % 8]);
    for (int64_t b = 0; b < B; ++b)
      for (int64_t d = 0; d < D; ++d) x[b * D + d] = std::ldexp(x[b * D + d], sizes[b / 2 % 8]);
    std::copy_n(&memory[8 * D], 8 * D, &memory[60 * D]);  // twice: the lower class wins
    std::copy_n(&memory[60 * D], 8 * D, &x[16 * D]);      // and rows on them
    Storage s(dtype);
    NearestCentroidForward p{size, dtype, s.in(x), s.in(memory), s.out(B), s.out_index(B)};
    table.nearest_centroid_forward(p, parallel);
    EXPECT_TRUE(s.intact()) << "wrote out of bounds";
    const Array distance = read(p.distance, B);
    for (int64_t b = 0; b < B; ++b) {
      SCOPED_TRACE(label(table, dtype, size) + ", row " + std::to_string(b));
      // Of numbers up to 2^1020, and their squares.
      long double best = std::numeric_limits<long double>::infinity();
      std::vector<long double> squares(C);
      for (int64_t c = 0; c < C; ++c) {
        for (int64_t d = 0; d < D; ++d) {
          const long double gap = static_cast<long double>(x[b * D + d]) - memory[c * D + d];
          squares[c] += gap * gap;
        }
        best = std::min(best, squares[c]);
      }
      const double root = static_cast<double>(std::sqrt(best));
      const int64_t k = p.index[b];
      ASSERT_TRUE(k >= 0 && k < C);
      // As near as the nearest but for rounding, and of the same the first.
      const long double rounding = wide ? 1e-14L : 1e-6L;
      EXPECT_LE(squares[k], best * (1 + rounding));
      for (int64_t c = 0; c < k; ++c) EXPECT_NE(squares[c], squares[k]) << "class " << c;
      EXPECT_NEAR(distance[b], root, (dtype == Dtype::kBFloat16 ? 4e-3 : 1e-6) * root);
    }
  }
}

// Rows of one number each, as flat pictures are, among themselves: all additions of a product round
// the same way.
inline void expect_nearest_of_flat_rows(const KernelTable& table) {
  const Sizes size{kSlow ? 12 : 40, 40, kSlow ? 4096 : 12288};
  Array memory;
  for (int64_t c = 0; c < size.classes; ++c)
    memory.insert(memory.end(), static_cast<size_t>(size.width),
                  static_cast<float>(c * 5) / 255.0f);
  const Array x(memory.end() - size.batch * size.width, memory.end());
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat64}) {
    Storage s(dtype);
    NearestCentroidForward p{
        size, dtype, s.in(x), s.in(memory), s.out(size.batch), s.out_index(size.batch)};
    table.nearest_centroid_forward(p, parallel);
    const Array distance = read(p.distance, size.batch);
    SCOPED_TRACE(label(table, dtype, size));
    for (int64_t b = 0; b < size.batch; ++b) {
      EXPECT_EQ(p.index[b], size.classes - size.batch + b);
      EXPECT_EQ(distance[b], 0) << "row " << b;
    }
  }
}

// NaN and infinities as torch.cdist in a wide type followed by min has them.
inline void expect_nearest_of_nan_and_infinity(const KernelTable& table) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  const auto found = [&](const Array& x, const Array& memory, size_t width = 1) {
    const size_t B = x.size() / width, C = memory.size() / width;
    Storage s(Dtype::kFloat32);
    NearestCentroidForward p{
        {static_cast<int64_t>(B), static_cast<int64_t>(C), static_cast<int64_t>(width)},
        s.dtype(),
        s.in(x),
        s.in(memory),
        s.out(B),
        s.out_index(B)};
    table.nearest_centroid_forward(p, parallel);
    return Arrays{read(p.distance, B), read(p.index, B)};
  };
  SCOPED_TRACE(table.isa);
  EXPECT_EQ(found({inf, -inf, 1e30, 3e38}, {5, -1e30, 1e30, -3e38}),
            (Arrays{{inf, inf, 0, static_cast<float>(3e38)}, {0, 0, 2, 0}}));
  EXPECT_EQ(found({-3e38}, {3e38, 2e38})[1], Array{1});  // both too far to say
  // A large coordinate in common; a small one tells classes apart.
  const double far = 0x1p70, e = 0x1p-20;
  const Arrays third{{e / 2}, {2}};
  EXPECT_EQ(found({far, 0}, {far, 1, far, e, far, e / 2, far, -e / 2}, 2), third);
  EXPECT_EQ(found({far, 0}, {0, 0, far, e, far, e / 2, far, -e / 2}, 2), third);
  Arrays got = found({inf, 1e-30, 1e30}, {5, -inf, inf, inf});
  EXPECT_EQ(got[1], (Array{2, 0, 0}));
  EXPECT_TRUE(std::isnan(got[0][0]));
  got = found({nan, 1e-30, 1e30, inf}, {1e-30, nan, 1e30, nan});
  EXPECT_EQ(got[1], (Array{0, 1, 1, 1}));
  for (const double d : got[0]) EXPECT_TRUE(std::isnan(d));
}

// 10 x / d where 10 / d overflows.
inline void expect_embedding_of_subnormal_numbers(const KernelTable& table) {
  std::mt19937 random(1);
  MetaEmbedding typed({1, 2, 2}, random);
  typed.eps = 0;
  const double least = 0x1p-140;
  typed.inputs = {{least, 0}, {1, 1, 0, 0}, Array(4), Array(2), Array(4), Array(2)};
  const Arrays out = static_cast<const Op&>(typed).forward(table, Dtype::kFloat32);
  SCOPED_TRACE(table.isa);
  EXPECT_EQ(out[0], (Array{10, 0}));
  EXPECT_EQ(out[3], Array{least});
  EXPECT_EQ(out[5], Array{1});
}

// The meta-embedding with features scaled, and what multiplies them by the inverse: its value and
// the gradients of attention and gate are the same, all else is scaled.
inline void expect_embedding_scales(const KernelTable& table, Sizes size) {
  std::mt19937 random(23);
  MetaEmbedding typed(size, random);
  typed.eps = 0;
  const Op& op = typed;
  const Arrays base = op.inputs, want = op.naive(base), grads = gradients_of(op, random);
  const Arrays gradient = op.backward(kernels_generic, Dtype::kFloat64, grads);
  const struct {
    Dtype dtype;
    double forward, backward;
    std::initializer_list<int> exponents;
  } cases[] = {{Dtype::kFloat32, 1e-5, 4e-5, {-110, -66, -40, 40, 62, 100}},
               {Dtype::kBFloat16, 8e-3, 6e-2, {-100, -66, 62, 100}},
               {Dtype::kFloat64, 1e-12, 1e-12, {-900, -520, 520, 900}}};
  for (const auto& t : cases)
    for (const int k : taken(t.exponents)) {
      SCOPED_TRACE(label(table, t.dtype, size) + ", scale 2^" + std::to_string(k));
      const auto features = [&](Arrays a, int by, std::initializer_list<size_t> of) {
        for (const size_t i : of) a[i] = scaled(a[i], by);
        return a;
      };
      typed.inputs = features(features(base, k, {0, 1}), -k, {2, 4});
      // Outputs 1 and 3 are a feature and a distance: their gradients go with the embedding's.
      expect_close(features(op.forward(table, t.dtype), -k, {1, 3}), want, t.forward, "output");
      const Arrays got = op.backward(table, t.dtype, features(grads, -k, {1, 3}));
      expect_close(features(features(got, k, {0, 1}), -k, {2, 4}), gradient, t.backward,
                   "gradient");
      typed.inputs = base;
      if (::testing::Test::HasFailure()) return;
    }
}

}  // namespace oltr::testing
