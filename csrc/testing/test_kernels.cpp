// Every CPU kernel, of every instruction set that this processor has, against naive loops in
// double: values; gradients by central differences of those loops; no access out of bounds; the
// same bits at any number of threads.
#include "common/plan.h"
#include "testing/tables.h"

namespace oltr::testing {
namespace {

constexpr Sizes kSizes[] = {{4, 6, 150},   {0, 3, 5},     {1, 1, 1},    {1, 1, 16},  {2, 3, 5},
                            {7, 13, 17},   {3, 64, 33},   {17, 65, 31}, {65, 7, 64}, {5, 300, 3},
                            {66, 530, 19}, {25, 31, 270}, {100, 75, 45}};

// Every table against naive loops, gradients against the generic kernels in double.
void expect_tables(const Op& op, const Arrays& grads, double slack = 1) {
  const Arrays want = op.naive(op.inputs);
  const Arrays exact = op.backward(kernels_generic, Dtype::kFloat64, grads);
  for (const KernelTable* table : tables()) {
    if (slow(table, op.size)) continue;
    expect_naive(op, *table, grads, want, exact, slack);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

template <class Op>
class Kernels : public ::testing::Test {};
using Ops =
    ::testing::Types<MemoryAttention, NearestCentroid, MetaEmbedding, CosineLogits,
                     CosineCrossEntropy, CosineCrossEntropyShard, DiscCentroidsLoss, ClassMeans>;
TYPED_TEST_SUITE(Kernels, Ops);

TYPED_TEST(Kernels, MatchNaiveLoops) {
  thread_count = 2;
  for (const Sizes size : kSizes) {
    std::mt19937 random(7);
    const TypeParam op(size, random);
    const Arrays grads = gradients_of(op, random);
    const Arrays want = op.naive(op.inputs);
    const Arrays exact =
        static_cast<const Op&>(op).backward(kernels_generic, Dtype::kFloat64, grads);
    if (kDifferences) {
      SCOPED_TRACE(label(kernels_generic, Dtype::kFloat64, size));
      expect_gradient(op, exact, grads, random);
    }
    for (const KernelTable* table : tables()) {
      if (slow(table, op.size)) continue;
      expect_naive(op, *table, grads, want, exact);
      if (this->HasFatalFailure()) return;
    }
  }
}

// So many that several row blocks share a tile and every pass has several parts.
TYPED_TEST(Kernels, MatchNaiveLoopsWhereBlocksShareATile) {
  constexpr Sizes kMany{260, 6200, 8};
  ASSERT_GT(make_plan(kMany.batch, kMany.classes, kMany.width, 4).row_group, 64);
  thread_count = 2;
  std::mt19937 random(5);
  const TypeParam op(kMany, random);
  expect_tables(op, gradients_of(op, random));
}

// A bank against a batch so small that gradients of its rows must be made `larger` to be seen.
template <class TypedOp>
void expect_large_bank(Sizes size, double larger) {
  thread_count = 2;
  std::mt19937 random(17);
  const TypedOp op(size, random);
  Arrays grads = gradients_of(op, random);
  for (double& g : grads[0]) g *= larger;
  expect_tables(op, grads);
}

// Gradients so large that they go past the caches.
TEST(MemoryAttention, MatchesNaiveLoopsWithALargeBank) {
  expect_large_bank<MemoryAttention>({10, 8300, 256}, 8300);
}
TEST(CosineCrossEntropy, MatchesNaiveLoopsWithALargeBank) {
  expect_large_bank<CosineCrossEntropy>({3, 8300, 256}, 8300);
}
// Parts of the bank so large that they go by larger tiles.
TYPED_TEST(Kernels, MatchNaiveLoopsWithManyClasses) {
  expect_large_bank<TypeParam>({1, 8300, 2}, 8);
}

// Logits of every other row far above those before them, in one tile or another of the last part: what
// was recalled of the others, and what waits to be, must vanish. And rows so wide that no tile waits.
TEST(MemoryAttention, MatchesNaiveLoopsWhereLogitsRise) {
  thread_count = 2;
  for (const Sizes size : {Sizes{5, 500, 8}, Sizes{20, 1100, 24}, Sizes{5, 300, 1100}}) {
    for (const int64_t rest : {280, 180, 60}) {
      std::mt19937 random(19);
      MemoryAttention op(size, random);
      for (int64_t r = 0; r < size.batch; ++r)
        op.inputs[0][r * size.width] = static_cast<double>(r % 2);
      for (int64_t c = 0; c < size.classes; ++c)
        op.inputs[1][c * size.width] = c < size.classes - rest ? 0 : 20;
      expect_tables(op, gradients_of(op, random), 3);  // of keys of 20
      if (HasFatalFailure()) return;
    }
  }
}

// "high" may split numbers in two bfloat16, "medium" may round them to one; tables that do neither
// answer the same as ever.
TYPED_TEST(Kernels, MatchNaiveLoopsAtLowerPrecisions) {
  const struct {
    Precision precision;
    double forward, backward;
  } lower[] = {{Precision::kHigh, 2e-5, 4e-5}, {Precision::kMedium, 6e-3, 3e-2}};
  thread_count = 2;
  for (const Sizes size : {Sizes{7, 13, 17}, Sizes{66, 530, 19}, Sizes{100, 75, 45},
                           Sizes{130, 300, 70}, Sizes{260, 70, 8}}) {
    std::mt19937 random(3);
    TypeParam typed(size, random);
    Op& op = typed;
    const Arrays grads = gradients_of(op, random);
    const Arrays want = op.naive(op.inputs);
    const Arrays exact = op.backward(kernels_generic, Dtype::kFloat64, grads);
    for (const auto& t : lower) {
      op.precision = t.precision;
      for (const KernelTable* table : tables()) {
        if (slow(table, op.size)) continue;
        SCOPED_TRACE(label(*table, Dtype::kFloat32, size) + ", precision " +
                     std::to_string(static_cast<int>(t.precision)));
        expect_close(op.forward(*table, Dtype::kFloat32), want, t.forward, "output");
        expect_close(op.backward(*table, Dtype::kFloat32, grads), exact, t.backward, "gradient");
        if (this->HasFatalFailure()) return;
      }
    }
  }
}

TYPED_TEST(Kernels, SameBitsAtAnyNumberOfThreads) {
  std::mt19937 random(11);
  const TypeParam typed(Sizes{130, 1100, 20}, random);
  const Op& op = typed;
  const Arrays grads = gradients_of(op, random);
  for (const KernelTable* table : tables()) {
    if (slow(table, op.size)) continue;
    SCOPED_TRACE(table->isa);
    thread_count = 1;
    const Arrays out = op.forward(*table, Dtype::kFloat32);
    const Arrays in = op.backward(*table, Dtype::kFloat32, grads);
    for (const int threads : {2, 4, 5}) {
      thread_count = threads;
      EXPECT_TRUE(op.forward(*table, Dtype::kFloat32) == out) << threads << " threads";
      EXPECT_TRUE(op.backward(*table, Dtype::kFloat32, grads) == in) << threads << " threads";
    }
    const Arrays half = op.backward(*table, Dtype::kBFloat16, grads);
    thread_count = 1;
    EXPECT_TRUE(op.backward(*table, Dtype::kBFloat16, grads) == half) << "bfloat16";
  }
}

// At full precision tiles only select: the answers are those of exact products, bit by bit.
TEST(Selection, ByTilesChangesNoBit) {
  thread_count = 2;
  for (const Sizes size : {Sizes{96, 70, 40}, Sizes{130, 150, 33}}) {
    std::mt19937 random(13);
    MetaEmbedding typed(size, random);
    for (int64_t d = 0; d < size.width; ++d)  // a row on two classes at once
      typed.inputs[0][d] = typed.inputs[1][9 * size.width + d] =
          typed.inputs[1][5 * size.width + d];
    const Op& op = typed;
    if (slow(&kernels_tile_twin, size)) continue;
    const Arrays got = op.forward(kernels_tile_twin, Dtype::kFloat32);
    EXPECT_TRUE(got == op.forward(kernels_generic, Dtype::kFloat32));
    EXPECT_EQ(got[5][0], 5);
  }
}

TEST(Dispatch, ChoosesATableOfThisProcessor) {
  bool found = false;
  for (const KernelTable* table : tables()) found |= table == &kernels();
  EXPECT_TRUE(found);
  EXPECT_STREQ(kernels().isa, selected_isa());
  std::printf("kernels: %s\n", selected_isa());
}

}  // namespace
}  // namespace oltr::testing
