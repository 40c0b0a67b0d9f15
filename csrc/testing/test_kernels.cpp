// Every CPU kernel, of every instruction set that this processor has, against naive loops in
// double: values; gradients by central differences of those loops; no access out of bounds; the
// same bits at any number of threads.
#include <string>

#include "common/plan.h"
#include "cpu/cpu_features.h"
#include "testing/loss_ops.h"
#include "testing/ops.h"

namespace oltr {
extern const KernelTable kernels_generic;
#if defined(__x86_64__)
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
extern const KernelTable kernels_avx512_bf16;
#endif
}  // namespace oltr

namespace oltr::testing {
namespace {

std::vector<const KernelTable*> tables() {
  std::vector<const KernelTable*> all{&kernels_generic};
#if defined(__x86_64__)
  const CpuFeatures f = cpu_features();
  if (f.avx2 && f.fma) all.push_back(&kernels_avx2);
  if (f.avx512f && f.fma) all.push_back(&kernels_avx512);
  if (f.avx512f && f.fma && f.avx512_bf16) all.push_back(&kernels_avx512_bf16);
#endif
  return all;
}

struct Tolerance {
  Dtype dtype;
  double forward, backward;
};
// Backward in a half type starts from forward results that were rounded to it.
constexpr Tolerance kTolerances[] = {{Dtype::kFloat64, 1e-12, 1e-12},
                                     {Dtype::kFloat32, 1e-5, 2e-5},
                                     {Dtype::kBFloat16, 6e-3, 3e-2},
                                     {Dtype::kFloat16, 8e-4, 4e-3}};

constexpr Sizes kSizes[] = {{0, 3, 5},   {1, 1, 1},    {1, 1, 16},  {2, 3, 5},   {7, 13, 17},
                            {3, 64, 33}, {17, 65, 31}, {65, 7, 64}, {5, 300, 3}, {66, 530, 19}};

// Largest error, against the largest value there is.
void expect_close(const Arrays& got, const Arrays& want, double tolerance, const char* what) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t k = 0; k < got.size(); ++k) {
    ASSERT_EQ(got[k].size(), want[k].size());
    double scale = 1;
    for (const double v : want[k]) scale = std::max(scale, std::abs(v));
    for (size_t i = 0; i < got[k].size(); ++i)
      ASSERT_NEAR(got[k][i], want[k][i], tolerance * scale) << what << ' ' << k << " at " << i;
  }
}

double objective(const Op& op, const Arrays& in, const Arrays& grads) {
  const Arrays out = op.naive(in);
  double sum = 0;
  for (size_t k = 0; k < grads.size(); ++k)
    sum += dot(out[k].data(), grads[k].data(), out[k].size());
  return sum;
}

// The gradient of each input along every axis if there are few, else along random directions.
void expect_gradient(const Op& op, const Arrays& got, const Arrays& grads, std::mt19937& random) {
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

template <class Op>
class Kernels : public ::testing::Test {};
using Ops = ::testing::Types<MemoryAttention, NearestCentroid, MetaEmbedding, CosineLogits,
                             CosineCrossEntropy, DiscCentroidsLoss, ClassMeans>;
TYPED_TEST_SUITE(Kernels, Ops);

Arrays gradients_of(const Op& op, std::mt19937& random) {
  const Arrays out = op.naive(op.inputs);
  Arrays grads;
  for (size_t k = 0; k < op.with_gradient; ++k)
    grads.push_back(random_array(static_cast<int64_t>(out[k].size()), random));
  return grads;
}

std::string label(const KernelTable& table, Dtype dtype, Sizes size) {
  return std::string(table.isa) + ", dtype " + std::to_string(static_cast<int>(dtype)) + ", B " +
         std::to_string(size.batch) + ", C " + std::to_string(size.classes) + ", D " +
         std::to_string(size.width);
}

TYPED_TEST(Kernels, MatchNaiveLoops) {
  thread_count = 2;
  for (const Sizes size : kSizes) {
    std::mt19937 random(7);
    const TypeParam op(size, random);
    const Arrays grads = gradients_of(op, random);
    const Arrays want = op.naive(op.inputs);
    const Arrays exact =
        static_cast<const Op&>(op).backward(kernels_generic, Dtype::kFloat64, grads);
    {
      SCOPED_TRACE(label(kernels_generic, Dtype::kFloat64, size));
      expect_gradient(op, exact, grads, random);
    }
    for (const KernelTable* table : tables()) {
      for (const Tolerance& t : kTolerances) {
        SCOPED_TRACE(label(*table, t.dtype, size));
        const Op& kernel = op;
        expect_close(kernel.forward(*table, t.dtype), want, t.forward, "output");
        expect_close(kernel.backward(*table, t.dtype, grads), exact, t.backward, "gradient");
        if (this->HasFatalFailure()) return;
      }
    }
  }
}

// So many that several row blocks share a tile and every pass has several parts.
TYPED_TEST(Kernels, MatchNaiveLoopsWhereBlocksShareATile) {
  constexpr Sizes kMany{260, 6200, 8};
  ASSERT_GT(make_plan(kMany.batch, kMany.classes, kMany.width, 4).row_group, 64);
  thread_count = 2;
  std::mt19937 random(5);
  const TypeParam typed(kMany, random);
  const Op& op = typed;
  const Arrays want = op.naive(op.inputs);
  const Arrays grads = gradients_of(op, random);
  const Arrays exact = op.backward(kernels_generic, Dtype::kFloat64, grads);
  for (const KernelTable* table : tables()) {
    for (const Tolerance& t : kTolerances) {
      SCOPED_TRACE(label(*table, t.dtype, kMany));
      expect_close(op.forward(*table, t.dtype), want, t.forward, "output");
      expect_close(op.backward(*table, t.dtype, grads), exact, t.backward, "gradient");
      if (this->HasFatalFailure()) return;
    }
  }
}

TYPED_TEST(Kernels, SameBitsAtAnyNumberOfThreads) {
  std::mt19937 random(11);
  const TypeParam typed(Sizes{130, 1100, 20}, random);
  const Op& op = typed;
  const Arrays grads = gradients_of(op, random);
  for (const KernelTable* table : tables()) {
    SCOPED_TRACE(table->isa);
    thread_count = 1;
    const Arrays out = op.forward(*table, Dtype::kFloat32);
    const Arrays in = op.backward(*table, Dtype::kFloat32, grads);
    for (const int threads : {2, 4, 5}) {
      thread_count = threads;
      EXPECT_TRUE(op.forward(*table, Dtype::kFloat32) == out) << threads << " threads";
      EXPECT_TRUE(op.backward(*table, Dtype::kFloat32, grads) == in) << threads << " threads";
    }
  }
}

TEST(Dispatch, ChoosesATableOfThisProcessor) {
  bool found = false;
  for (const KernelTable* table : tables()) found |= table == &kernels();
  EXPECT_TRUE(found);
  EXPECT_STREQ(kernels().isa, selected_isa());
}

}  // namespace
}  // namespace oltr::testing
