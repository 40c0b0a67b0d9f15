// The CUDA sources on the host, each CUDA thread a fiber, under schedules drawn at random: the same
// checks as for the CPU kernels, and that schedules and chunks do not show.
#include "testing/on_host.h"

namespace oltr::testing {
namespace {

template <class Op>
class CudaOnHost : public ::testing::Test {};
using Ops =
    ::testing::Types<MemoryAttention, NearestCentroid, MetaEmbedding, CosineLogits,
                     CosineCrossEntropy, CosineCrossEntropyShard, DiscCentroidsLoss, ClassMeans>;
TYPED_TEST_SUITE(CudaOnHost, Ops);

// Odd widths; one chunk and several; one part of the rows and two.
constexpr Sizes kSizes[] = {{0, 3, 5},    {1, 1, 1},   {2, 3, 5},   {3, 7, 33},
                            {5, 300, 16}, {9, 140, 3}, {4, 6, 150}, {67, 70, 19}};

TYPED_TEST(CudaOnHost, MatchesNaiveLoops) {
  for (const Sizes size : kSizes) {
    std::mt19937 random(7);
    const TypeParam typed(size, random);
    const Op& op = typed;
    const Arrays grads = gradients_of(op, random);
    const Arrays exact = op.backward(kernels_generic, Dtype::kFloat64, grads);
    expect_naive(op, cuda_kernels, grads, op.naive(op.inputs), exact, 2);
    if (this->HasFatalFailure()) return;
  }
}

// So many classes that several blocks count the possible ones, in one type as in another.
TEST(CudaOnHost, CrossEntropySmoothedOverManyClasses) {
  std::mt19937 random(13);
  const CosineCrossEntropy typed(Sizes{1, 1100, 1}, random);
  const Op& op = typed;
  const Arrays grads = gradients_of(op, random);
  const Arrays exact = op.backward(kernels_generic, Dtype::kFloat64, grads);
  expect_close(op.forward(cuda_kernels, Dtype::kFloat32), op.naive(op.inputs), 1e-5, "output");
  expect_close(op.backward(cuda_kernels, Dtype::kFloat32, grads), exact, 2e-5, "gradient");
}

TYPED_TEST(CudaOnHost, SameBitsUnderAnySchedule) {
  std::mt19937 random(11);
  const TypeParam typed(Sizes{5, 140, 40}, random);
  const Op& op = typed;
  const Arrays grads = gradients_of(op, random);
  const Arrays out = op.forward(cuda_kernels, Dtype::kFloat32);
  const Arrays in = op.backward(cuda_kernels, Dtype::kFloat32, grads);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(op.forward(cuda_kernels, Dtype::kFloat32) == out);
    EXPECT_TRUE(op.backward(cuda_kernels, Dtype::kFloat32, grads) == in);
  }
}

TYPED_TEST(CudaOnHost, OneChunkOrManyGiveTheSame) {
  std::mt19937 random(5);
  const TypeParam typed(Sizes{3, 500, 8}, random);
  const Op& op = typed;
  const Arrays grads = gradients_of(op, random);
  const Arrays many = op.forward(cuda_kernels, Dtype::kFloat64);
  const Arrays many_in = op.backward(cuda_kernels, Dtype::kFloat64, grads);
  for (const int64_t bytes : {int64_t{9000}, cuda::kChunkBytes}) {  // the sums of two; all at once
    device.chunk_bytes = bytes;
    expect_close(op.forward(cuda_kernels, Dtype::kFloat64), many, 1e-13, "output");
    expect_close(op.backward(cuda_kernels, Dtype::kFloat64, grads), many_in, 1e-13, "gradient");
  }
  device.chunk_bytes = 1;
}

// --- nearest centroid: where the product form has no correct digit ------------------------------

TEST(CudaOnHost, NearestCentroidMeasuresWhatTheProductCannotTellApart) {
  const Sizes size{4, 150, 32};
  std::mt19937 random(3);
  std::normal_distribution<double> normal;
  // Exact in float32, so that the loops in double see the same numbers.
  const auto near_hundred = [&](int64_t n) {
    Array a(static_cast<size_t>(n));
    for (double& v : a) v = static_cast<float>(100 + 1e-3 * normal(random));
    return a;
  };
  const Array x = near_hundred(4 * 32), memory = near_hundred(150 * 32);
  const Found got = nearest_on_host(size, Dtype::kFloat32, x, memory);
  for (int64_t b = 0; b < size.batch; ++b) {
    const auto [distance, index] = nearest(&x[b * 32], memory, 150, 32);
    EXPECT_EQ(got.index[b], index);
    EXPECT_NEAR(got.distance[b], distance, 2e-6 * distance);
  }
}

// One coordinate far larger than the others: the products' rounding errors do not average out.
TEST(CudaOnHost, NearestCentroidWhereRoundedProductsMisleadMost) {
  constexpr int64_t D = 512;
  const Sizes size{8, 150, D};
  std::mt19937 random(4);
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform(50, 150);
  const auto dominated = [&](int64_t n) {
    Array a(static_cast<size_t>(n));
    for (size_t i = 0; i < a.size(); ++i)
      a[i] = static_cast<float>(i % D == 0 ? uniform(random) : 0.05 * normal(random));
    return a;
  };
  const Array x = dominated(8 * D), memory = dominated(150 * D);
  for (const Precision precision : {Precision::kHigh, Precision::kMedium}) {
    const Found got = nearest_on_host(size, Dtype::kFloat32, x, memory, precision);
    for (int64_t b = 0; b < size.batch; ++b) {
      const auto [distance, index] = nearest(&x[b * D], memory, 150, D);
      EXPECT_EQ(got.index[b], index);
      EXPECT_NEAR(got.distance[b], distance, 1e-5 * distance);
    }
  }
}

TEST(CudaOnHost, NearestCentroidTiesAndNan) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Sizes size{3, 300, 1};
  const Array x{0, nan, 5};
  Array memory(300, 9.0);
  memory[250] = memory[150] = memory[40] = memory[3] = memory[2] = 1;  // in warps and chunks
  Found got = nearest_on_host(size, Dtype::kFloat32, x, memory);
  EXPECT_EQ(got.index, (Array{2, 0, 0}));  // 5 lies between 9 and 1
  EXPECT_EQ(got.distance[0], 1);
  EXPECT_TRUE(std::isnan(got.distance[1]));
  EXPECT_EQ(got.distance[2], 4);

  memory[170] = memory[90] = nan;
  got = nearest_on_host(size, Dtype::kFloat32, x, memory);
  EXPECT_EQ(got.index, (Array{90, 0, 90}));
  for (const double d : got.distance) EXPECT_TRUE(std::isnan(d));
}

// --- labels that are no class: NaN, never an index ----------------------------------------------

TEST(CudaOnHost, LabelsOutOfRangeMakeNan) {
  const Sizes size{3, 4, 5};
  std::mt19937 random(2);
  const Array rows = random_array(15, random), bank = random_array(20, random);
  for (const int64_t bad : {int64_t{-1}, int64_t{4}, int64_t{1} << 40}) {
    const Labels target{1, bad, -100};
    Storage s(Dtype::kFloat32);
    CosineCrossEntropyForward entropy{size,         s.dtype(),    16,           0.1,
                                      -100,         s.in(rows),   s.in(bank),   Matrix{},
                                      s.in(target), s.out_acc(3), s.out_acc(3), s.out_acc(1)};
    on_host(entropy, parallel);
    const Array loss = read(entropy.loss, 3);
    EXPECT_TRUE(std::isfinite(loss[0]));
    EXPECT_TRUE(std::isnan(loss[1]));
    EXPECT_EQ(loss[2], 0);
    entropy.others = 0;  // of a shard, one past the last is a class of another
    on_host(entropy, parallel);
    EXPECT_EQ(std::isnan(read(entropy.loss, 3)[1]), bad != 4);

    Array sums(11);
    DiscCentroidsLossForward disc{size,       s.dtype(),    10,           1,          s.in(rows),
                                  s.in(bank), s.in(target), s.out_acc(1), sums.data()};
    on_host(disc, parallel);
    EXPECT_TRUE(std::isnan(read(disc.loss, 1)[0]));

    ClassMeansForward means{size, s.dtype(), s.in(rows), s.in(target), s.out(20), s.out_index(4)};
    on_host(means, parallel);
    for (const double v : read(means.means, 20)) EXPECT_TRUE(std::isnan(v));
    EXPECT_TRUE(s.intact());
  }
}

// --- launch plans: what a GPU will be asked for, at any shape -----------------------------------

template <class Params>
int64_t workspace_of(Sizes size, Dtype dtype) {
  Params p{};
  p.size = size;
  p.dtype = dtype;
  return std::max(cuda::workspace_bytes(p, {cuda::kChunkBytes}),
                  cuda::workspace_bytes(p, cuda::kH100));
}

TEST(CudaPlan, WorkspaceStaysBoundedAtAnyNumberOfClasses) {
  for (const Dtype dtype : {Dtype::kFloat64, Dtype::kFloat32, Dtype::kBFloat16}) {
    for (const int64_t B : {int64_t{1}, int64_t{64}, int64_t{1024}, int64_t{4096}}) {
      for (const int64_t D : {int64_t{16}, int64_t{512}, int64_t{2048}, int64_t{4096}}) {
        for (const int64_t C : {int64_t{1000}, int64_t{1000000}, int64_t{1} << 32}) {
          // What grows with the batch alone: its rows, in the accumulator and beside it.
          const int64_t rows = B * D * 8 * 3;
          const int64_t most = (int64_t{256} << 20) + rows;
          const Sizes size{B, C, D};
          EXPECT_LE(workspace_of<MemoryAttentionForward>(size, dtype), most);
          EXPECT_LE(workspace_of<MemoryAttentionBackward>(size, dtype), most);
          EXPECT_LE(workspace_of<NearestCentroidForward>(size, dtype), most);
          EXPECT_LE(workspace_of<MetaEmbeddingForward>(size, dtype), most);
          EXPECT_LE(workspace_of<MetaEmbeddingBackward>(size, dtype), most);
          EXPECT_LE(workspace_of<CosineLogitsForward>(size, dtype), most);
          EXPECT_LE(workspace_of<CosineLogitsBackward>(size, dtype), most);
          EXPECT_LE(workspace_of<CosineCrossEntropyForward>(size, dtype), most);
          EXPECT_LE(workspace_of<CosineCrossEntropyBackward>(size, dtype), most);
          EXPECT_LE(workspace_of<DiscCentroidsLossForward>(size, dtype), most);
        }
      }
    }
  }
}

TEST(CudaPlan, ChunksCoverTheBankEvenly) {
  for (const int64_t C : {1, 127, 128, 129, 1000, 8142, 1000000}) {
    for (const int64_t bytes : {1, 1000, 10000, 100000}) {
      const int64_t chunk = cuda::chunk_classes(C, bytes, cuda::kChunkBytes);
      EXPECT_EQ(chunk % cuda::kChunkUnit, 0);
      EXPECT_GE(chunk, cuda::kChunkUnit);
      EXPECT_LE(chunk * bytes, std::max(cuda::kChunkBytes, cuda::kChunkUnit * bytes));
      const int64_t chunks = div_up(C, chunk);
      EXPECT_LT(chunks * chunk - C, chunks * cuda::kChunkUnit);  // the last one is no stump
    }
  }
}

TEST(CudaPlan, SumsAreHeldForSeveralChunks) {
  EXPECT_EQ(cuda::held_sums({3, 500, 8}, 128, 8, 1), 128);
  EXPECT_EQ(cuda::held_sums({3, 500, 8}, 128, 8, 5000), 128);
  EXPECT_EQ(cuda::held_sums({3, 500, 8}, 128, 8, 9000), 256);
  EXPECT_EQ(cuda::held_sums({3, 500, 8}, 128, 8, cuda::kChunkBytes), 512);
}

TEST(CudaPlan, AGridTooLargeIsAnErrorAndEndsTheQueue) {
  cuda::Queue queue{nullptr, multiply, nullptr};
  Labels nothing;
  ClassMeansForward p{};
  p.size = {0, int64_t{1} << 31, 4};
  p.dtype = Dtype::kFloat32;
  p.sorted = p.order = nothing.data();
  cuda::enqueue(p, queue);
  EXPECT_STREQ(queue.error, "more blocks than a grid can have");
}

// --- the stand-in itself: forgetting a barrier must show ----------------------------------------

void reversed(int* out, int n, bool wait) {
  OLTR_DYNAMIC_SHARED(shared);
  int* values = reinterpret_cast<int*>(shared);
  const int t = static_cast<int>(threadIdx.x);
  values[t] = t;
  if (wait) __syncthreads();
  out[t] = values[n - 1 - t];
}

TEST(HostCuda, AMissingBarrierShows) {
  constexpr int kThreads = 64;
  std::vector<int> out(kThreads), want(kThreads);
  for (int t = 0; t < kThreads; ++t) want[t] = kThreads - 1 - t;
  const cuda::Launch l{1, kThreads, kThreads * static_cast<int64_t>(sizeof(int))};
  OLTR_LAUNCH(reversed, l, nullptr, out.data(), kThreads, true);
  EXPECT_EQ(out, want);
  OLTR_LAUNCH(reversed, l, nullptr, out.data(), kThreads, false);
  EXPECT_NE(out, want);
}

void vote(unsigned* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const unsigned odd = __ballot_sync(0xffffffffu, lane % 2 == 1);
  const int sum = __shfl_xor_sync(0xffffffffu, lane, 1) + lane;
  out[lane] = odd + static_cast<unsigned>(sum);
}

TEST(HostCuda, ExchangesAndVotes) {
  std::vector<unsigned> out(32);
  const cuda::Launch l{1, 32, 0};
  OLTR_LAUNCH(vote, l, nullptr, out.data());
  for (unsigned lane = 0; lane < 32; ++lane) EXPECT_EQ(out[lane], 0xaaaaaaaau + (lane / 2 * 4 + 1));
}

}  // namespace
}  // namespace oltr::testing
