// What every kernel is held to, on any backend: values of naive loops in double, gradients by their
// central differences, no access out of bounds.
#pragma once

#include <string>

#include "testing/loss_ops.h"
#include "testing/ops.h"

namespace oltr::testing {

// Many times slower under a sanitizer or an emulator: fewer cases of a kind.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(OLTR_EMULATED)
constexpr bool kSlow = true;
#else
constexpr bool kSlow = false;
#endif
// Central differences hold the generic kernels in double to the loops: the same C++ on every processor,
// in which no thread meets another.
#if defined(__SANITIZE_THREAD__) || defined(OLTR_EMULATED)
constexpr bool kDifferences = false;
#else
constexpr bool kDifferences = true;
#endif

struct Tolerance {
  Dtype dtype;
  double forward, backward;
};
// Backward in a half type starts from forward results that were rounded to it.
constexpr Tolerance kTolerances[] = {{Dtype::kFloat64, 1e-12, 1e-12},
                                     {Dtype::kFloat32, 1e-5, 2e-5},
                                     {Dtype::kBFloat16, 6e-3, 3e-2},
                                     {Dtype::kFloat16, 8e-4, 4e-3}};

// Largest error, against the largest value there is.
inline void expect_close(const Arrays& got, const Arrays& want, double tolerance,
                         const char* what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t k = 0; k < got.size(); ++k) {
    ASSERT_EQ(got[k].size(), want[k].size());
    double scale = 1;
    for (const double v : want[k]) scale = std::max(scale, std::abs(v));
    // The macro alone would take most of a test's time.
    for (size_t i = 0; i < got[k].size(); ++i)
      if (!(std::abs(got[k][i] - want[k][i]) <= tolerance * scale))
        ASSERT_NEAR(got[k][i], want[k][i], tolerance * scale) << what << ' ' << k << " at " << i;
  }
}

inline double objective(const Op& op, const Arrays& in, const Arrays& grads) {
  const Arrays out = op.naive(in);
  double sum = 0;
  for (size_t k = 0; k < grads.size(); ++k)
    sum += dot(out[k].data(), grads[k].data(), out[k].size());
  return sum;
}

// The gradient of each input along every axis if there are few, else along random directions.
inline void expect_gradient(const Op& op, const Arrays& got, const Arrays& grads,
                            std::mt19937& random) {
  constexpr double kStep = 1e-5;
  for (size_t k = 0; k < op.inputs.size(); ++k) {
    const size_t n = op.inputs[k].size();
    ASSERT_EQ(got[k].size(), n);
    const bool axes = n <= 64;
    for (size_t j = 0; j < (axes ? n : 6); ++j) {
      Array direction = random_array(static_cast<int64_t>(n), random);
      if (axes) {
        std::fill(direction.begin(), direction.end(), 0.0);
        direction[j] = 1;
      }
      double side[2];
      for (const int sign : {-1, 1}) {
        Arrays moved = op.inputs;
        for (size_t i = 0; i < n; ++i) moved[k][i] += sign * kStep * direction[i];
        side[sign > 0] = objective(op, moved, grads);
      }
      const double want = (side[1] - side[0]) / (2 * kStep);
      const double tolerance = 2e-6 * (1 + std::abs(want) + std::abs(side[0]) / 100);
      ASSERT_NEAR(dot(got[k].data(), direction.data(), static_cast<int64_t>(n)), want, tolerance)
          << "input " << k << ", direction " << j;
    }
  }
}

inline Arrays gradients_of(const Op& op, std::mt19937& random) {
  const Arrays out = op.naive(op.inputs);
  Arrays grads;
  for (size_t k = 0; k < op.with_gradient; ++k)
    grads.push_back(random_array(static_cast<int64_t>(out[k].size()), random));
  return grads;
}

inline std::string label(const KernelTable& table, Dtype dtype, Sizes size) {
  return std::string(table.isa) + ", dtype " + std::to_string(static_cast<int>(dtype)) + ", B " +
         std::to_string(size.batch) + ", C " + std::to_string(size.classes) + ", D " +
         std::to_string(size.width);
}

// A table against naive loops, in every dtype. Gradients in double are held to differences of the
// loops, those in the other dtypes to what the generic kernels compute in double. `slack` widens the
// half types' gradients, for kernels that round weights and gradients of logits to them.
inline void expect_naive(const Op& op, const KernelTable& table, const Arrays& grads,
                         const Arrays& want, const Arrays& exact, double slack = 1) {
  for (const Tolerance& t : kTolerances) {
    SCOPED_TRACE(label(table, t.dtype, op.size));
    const double backward = dtype_bytes(t.dtype) == 2 ? slack * t.backward : t.backward;
    expect_close(op.forward(table, t.dtype), want, t.forward, "output");
    expect_close(op.backward(table, t.dtype, grads), exact, backward, "gradient");
    if (::testing::Test::HasFatalFailure()) return;
  }
}

}  // namespace oltr::testing
