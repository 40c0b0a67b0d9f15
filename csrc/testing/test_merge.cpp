// The merge rule by its laws: associative, commutative, with an identity; NaN in its own row only.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "common/merge.h"

namespace oltr {
namespace {

constexpr int kWidth = 3;

template <class T>
struct State {
  T max = Identity<T>::max, sum = Identity<T>::sum;
  T out[kWidth] = {};
  T d2 = Identity<T>::distance2;
  int64_t index = Identity<T>::index;
};

template <class T>
State<T> merge(State<T> a, const State<T>& b) {
  T keep, take;
  merge_softmax(a.max, a.sum, b.max, b.sum, keep, take, [](T v) { return std::exp(v); });
  for (int i = 0; i < kWidth; ++i) a.out[i] = a.out[i] * keep + b.out[i] * take;
  if (closer(b.d2, b.index, a.d2, a.index)) {
    a.d2 = b.d2;
    a.index = b.index;
  }
  return a;
}

template <class T>
State<T> leaf(T logit, T d2, int64_t index, std::mt19937& random) {
  State<T> s;
  s.max = logit;
  s.sum = 1;
  s.d2 = d2;
  s.index = index;
  std::normal_distribution<T> normal;
  for (T& v : s.out) v = normal(random);
  return s;
}

// Leaves with far-apart logits and with ties in the distance.
template <class T>
std::vector<State<T>> leaves(int n, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<T> logit(-60, 60);
  std::uniform_int_distribution<int> few(0, 4);
  std::vector<State<T>> all;
  for (int i = 0; i < n; ++i) all.push_back(leaf<T>(logit(random), few(random), i, random));
  return all;
}

template <class T>
void expect_same(const State<T>& a, const State<T>& b) {
  const T tolerance = 64 * std::numeric_limits<T>::epsilon();
  EXPECT_EQ(a.max, b.max);
  EXPECT_EQ(a.d2, b.d2);
  EXPECT_EQ(a.index, b.index);
  EXPECT_NEAR(a.sum, b.sum, tolerance * std::abs(b.sum));
  for (int i = 0; i < kWidth; ++i) EXPECT_NEAR(a.out[i], b.out[i], tolerance * (1 + b.sum));
}

template <class T>
class Merge : public testing::Test {};
using Types = testing::Types<float, double>;
TYPED_TEST_SUITE(Merge, Types);

TYPED_TEST(Merge, Associative) {
  for (unsigned seed = 0; seed < 500; ++seed) {
    const auto s = leaves<TypeParam>(3, seed);
    expect_same(merge(merge(s[0], s[1]), s[2]), merge(s[0], merge(s[1], s[2])));
  }
}

TYPED_TEST(Merge, Commutative) {
  for (unsigned seed = 0; seed < 500; ++seed) {
    const auto s = leaves<TypeParam>(2, seed);
    expect_same(merge(s[0], s[1]), merge(s[1], s[0]));
  }
}

TYPED_TEST(Merge, IdentityChangesNoBit) {
  const State<TypeParam> none;
  for (unsigned seed = 0; seed < 100; ++seed) {
    const auto s = leaves<TypeParam>(1, seed)[0];
    for (const auto& merged : {merge(s, none), merge(none, s)}) {
      EXPECT_EQ(merged.max, s.max);
      EXPECT_EQ(merged.sum, s.sum);
      EXPECT_EQ(merged.d2, s.d2);
      EXPECT_EQ(merged.index, s.index);
      for (int i = 0; i < kWidth; ++i) EXPECT_EQ(merged.out[i], s.out[i]);
    }
  }
  const State<TypeParam> still_none = merge(none, none);
  EXPECT_EQ(still_none.max, none.max);
  EXPECT_EQ(still_none.sum, 0);
  EXPECT_EQ(still_none.index, none.index);
}

// Any tree over any order of the leaves gives the softmax of all of them and the nearest of all.
TYPED_TEST(Merge, AnyOrderIsTheWhole) {
  for (unsigned seed = 0; seed < 50; ++seed) {
    auto s = leaves<TypeParam>(17, seed);
    double max = s[0].max, sum = 0;
    const State<TypeParam>* nearest = &s[0];
    for (const auto& l : s) {
      max = std::max<double>(max, l.max);
      if (l.d2 < nearest->d2) nearest = &l;  // strict: the first of equals stays
    }
    for (const auto& l : s) sum += std::exp(l.max - max);
    const int64_t index = nearest->index;

    std::mt19937 random(seed);
    std::shuffle(s.begin(), s.end(), random);
    while (s.size() > 1) {
      const size_t i = random() % (s.size() - 1);
      s[i] = merge(s[i], s[i + 1]);
      s.erase(s.begin() + i + 1);
    }
    EXPECT_EQ(s[0].max, static_cast<TypeParam>(max));
    EXPECT_NEAR(s[0].sum, sum, 64 * std::numeric_limits<TypeParam>::epsilon() * sum);
    EXPECT_EQ(s[0].index, index);
  }
}

TYPED_TEST(Merge, CloserIsATotalOrderWithNanFirst) {
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  const TypeParam inf = std::numeric_limits<TypeParam>::infinity();
  const TypeParam values[] = {nan, 0, 1, inf};  // in their order
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      EXPECT_EQ(closer(values[i], int64_t{5}, values[j], int64_t{7}), i <= j);
      EXPECT_EQ(closer(values[i], int64_t{7}, values[j], int64_t{5}), i < j);
      EXPECT_FALSE(closer(values[i], int64_t{5}, values[i], int64_t{5}));
    }
  }
}

TYPED_TEST(Merge, NanLogitPoisonsTheSumAlone) {
  std::mt19937 random(0);
  const TypeParam nan = std::numeric_limits<TypeParam>::quiet_NaN();
  State<TypeParam> bad = leaf<TypeParam>(2, 1, 0, random);
  bad.sum = nan;
  const auto good = leaf<TypeParam>(3, 2, 1, random);
  for (const auto& merged : {merge(bad, good), merge(good, bad)}) {
    EXPECT_TRUE(std::isnan(merged.sum));
    EXPECT_EQ(merged.max, 3);
    EXPECT_EQ(merged.index, 0);
  }
}

}  // namespace
}  // namespace oltr
