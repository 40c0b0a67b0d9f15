// The fused forward passes on the host: halves alone, against naive loops, and how they are planned.
#include "testing/on_host.h"

namespace oltr::testing {
namespace {

// As many multiprocessors as give the bank several parts, and an H100's shared memory.
class CudaFused : public ::testing::Test {
 protected:
  CudaFused() { device = {1, 5, 227 << 10}; }
  ~CudaFused() override { device = {1}; }
};
constexpr Tolerance kHalves[] = {kTolerances[2], kTolerances[3]};
static_assert(kHalves[0].dtype == Dtype::kBFloat16 && kHalves[1].dtype == Dtype::kFloat16, "");

void expect_fused(const Op& op) {
  ASSERT_GT(cuda::fused_plan(op.size, true, device).width, 0);
  const Arrays want = op.naive(op.inputs);
  for (const Tolerance& t : kHalves) {
    SCOPED_TRACE(label(cuda_kernels, t.dtype, op.size));
    expect_close(op.forward(cuda_kernels, t.dtype), want, t.forward, "output");
    if (::testing::Test::HasFatalFailure()) return;
  }
}

// Each width that there is a kernel for, whole and not, and the smaller slab; one block of rows and two;
// one part of the bank and several; tiles that end early.
TEST_F(CudaFused, MatchesNaiveLoops) {
  constexpr struct {
    Sizes size;
    int64_t shared_kb;
  } kFused[] = {{{1, 1, 8}, 99},      {{3, 33, 16}, 99},    {{64, 64, 128}, 227},
                {{70, 333, 40}, 227}, {{5, 100, 136}, 163}, {{66, 70, 512}, 227},
                {{7, 90, 264}, 163}};
  for (const auto& [size, shared_kb] : kFused) {
    device.shared_bytes = shared_kb << 10;
    std::mt19937 random(17);
    expect_fused(MemoryAttention(size, random));
    expect_fused(NearestCentroid(size, random));
    expect_fused(MetaEmbedding(size, random));
    expect_fused(CosineCrossEntropy(size, random));
    expect_fused(CosineCrossEntropyShard(size, random));
    if (HasFatalFailure()) return;
  }
  EXPECT_EQ(host_cuda::bank_conflicts, 0);
}

TEST_F(CudaFused, SameBitsUnderAnySchedule) {
  std::mt19937 random(19);
  const MetaEmbedding typed(Sizes{5, 200, 128}, random);
  const Op& op = typed;
  const Arrays out = op.forward(cuda_kernels, Dtype::kBFloat16);
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(op.forward(cuda_kernels, Dtype::kBFloat16) == out);
}

// Centroids that differ in one place each, by 1 of about 2000: float16 holds them exactly, and floats of
// the products' size cannot tell them apart.
TEST_F(CudaFused, NearestCentroidMeasuresWhatTheProductCannotTellApart) {
  constexpr int64_t C = 150, D = 512;
  std::mt19937 random(3);
  Array x(4 * D), memory(C * D);
  for (double& v : x) v = 2000 + static_cast<double>(random() % 5);
  for (int64_t i = 0; i < C * D; ++i)
    memory[i] = i < D ? 2000 + static_cast<double>(random() % 5) : memory[i % D];
  for (int64_t c = 1; c < C; ++c) memory[c * D + 3 * c] += random() % 2 == 0 ? 1 : -1;
  const Found got = nearest_on_host({4, C, D}, Dtype::kFloat16, x, memory);
  for (int64_t b = 0; b < 4; ++b) {
    const auto [distance, index] = nearest(&x[b * D], memory, C, D);
    EXPECT_EQ(got.index[b], index);
    EXPECT_NEAR(got.distance[b], distance, 5e-4 * distance);
  }
}

TEST_F(CudaFused, NearestCentroidTiesAndNan) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Sizes size{3, 300, 8};
  const auto rows = [](std::initializer_list<double> values) {
    Array a;
    for (const double v : values) a.insert(a.end(), 8, v);
    return a;
  };
  const Array x = rows({0, nan, 5});
  Array memory(300 * 8, 9.0);
  for (const int64_t c : {250, 150, 40, 3, 2}) std::fill_n(&memory[c * 8], 8, 1.0);
  Found got = nearest_on_host(size, Dtype::kBFloat16, x, memory);
  EXPECT_EQ(got.index, (Array{2, 0, 0}));  // 5 lies between 9 and 1
  EXPECT_TRUE(std::isnan(got.distance[1]));

  memory[170 * 8 + 3] = memory[90 * 8] = nan;
  got = nearest_on_host(size, Dtype::kBFloat16, x, memory);
  EXPECT_EQ(got.index, (Array{90, 0, 90}));
  for (const double d : got.distance) EXPECT_TRUE(std::isnan(d));
}

// Labels that are no class, ignored rows, impossible classes, NaN, rows of zeros: as in exact chunks.
TEST_F(CudaFused, CrossEntropyOfWhatIsOdd) {
  constexpr int64_t B = 9, C = 150, D = 16;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double impossible = -std::numeric_limits<double>::infinity();
  std::mt19937 random(23);
  Array v = random_array(B * D, random), weight = random_array(C * D, random);
  std::fill_n(&v[3 * D], D, 0.0);
  v[4 * D + 5] = nan;
  std::fill_n(&weight[70 * D], D, 0.0);
  Array some = random_array(C, random);
  for (int64_t c = 0; c < 100; ++c) some[c] = impossible;
  const Labels target{149, -1, C, 120, 0, int64_t{1} << 40, -100, 70, 5};
  for (const Array& prior : {some, Array(C, impossible)}) {
    for (const double smoothing : {0.0, 0.25}) {
      const auto losses = [&](Dtype dtype) {
        Storage s(dtype);
        CosineCrossEntropyForward p{{B, C, D},    dtype,        16,           smoothing,
                                    -100,         s.in(v),      s.in(weight), s.in_acc(prior),
                                    s.in(target), s.out_acc(B), s.out_acc(B), s.out_acc(1)};
        on_host(p, parallel);
        EXPECT_TRUE(s.intact()) << "wrote out of bounds";
        return Arrays{read(p.loss, B), read(p.lse, B), read(p.counted, 1)};
      };
      const Arrays got = losses(Dtype::kBFloat16), want = losses(Dtype::kFloat32);
      for (size_t k = 0; k < got.size(); ++k) {
        for (size_t i = 0; i < got[k].size(); ++i) {
          const double g = got[k][i], w = want[k][i];
          const bool same = (std::isnan(g) && std::isnan(w)) || g == w;
          EXPECT_TRUE(same || std::abs(g - w) < 1e-4 * std::max(1.0, std::abs(w)))
              << "output " << k << ", row " << i << ": " << g << " for " << w;
        }
      }
    }
  }
}

// --- launch plans -------------------------------------------------------------------------------

TEST(CudaPlan, FusedPassesFillTheDevice) {
  for (const int64_t B : {1, 64, 65, 256, 1024, 6400, 100000}) {
    for (const int64_t C : {1, 31, 1000, 8142, 1000000}) {
      for (const int64_t D : {8, 128, 136, 256, 512}) {
        const cuda::FusedPlan plan = cuda::fused_plan({B, C, D}, true, cuda::kH100);
        EXPECT_GE(plan.width, D);
        EXPECT_LE(plan.shared_bytes, cuda::kH100.shared_bytes);
        EXPECT_GE(plan.row_blocks * cuda::kFusedRows, B);
        ASSERT_GE(plan.parts, 1);
        EXPECT_LE(plan.parts, div_up(C, plan.slab));  // none is empty
        // Large banks leave no more than one multiprocessor in eight idle.
        const int64_t blocks = plan.row_blocks * plan.parts, on = cuda::kH100.multiprocessors;
        if (C == 1000000) {
          EXPECT_GE(blocks * 8, div_up(blocks, on) * on * 7);
        }
      }
    }
  }
  const auto kernel = [](int64_t D, cuda::Device on) {
    const cuda::FusedPlan plan = cuda::fused_plan({64, 1000, D}, true, on);
    return std::pair<int64_t, int64_t>(plan.width, plan.slab);
  };
  using Kernel = std::pair<int64_t, int64_t>;
  constexpr cuda::Device kA100{cuda::kChunkBytes, 108, 163 << 10},
      kSmall{cuda::kChunkBytes, 80, 99 << 10};
  EXPECT_EQ(kernel(512, cuda::kH100), Kernel(512, 32));
  EXPECT_EQ(kernel(520, cuda::kH100), Kernel(0, 0));
  EXPECT_EQ(kernel(512, kA100), Kernel(512, 16));
  EXPECT_EQ(kernel(256, kA100), Kernel(256, 32));
  EXPECT_EQ(kernel(128, kSmall), Kernel(128, 32));
  EXPECT_EQ(kernel(136, kSmall), Kernel(0, 0));
  EXPECT_EQ(kernel(8, {cuda::kChunkBytes}), Kernel(0, 0));
  EXPECT_EQ(cuda::fused_plan({1, int64_t{1} << 31, 8}, true, cuda::kH100).width, 0);
}

template <class Params>
int64_t fused_workspace(Sizes size) {
  Params p{};
  p.size = size;
  p.dtype = Dtype::kBFloat16;
  return cuda::workspace_bytes(p, cuda::kH100);
}

TEST(CudaPlan, FusedWorkspaceStaysBoundedForAnyNumberOfRows) {
  constexpr int64_t kMost = int64_t{256} << 20;
  for (const Sizes size : {Sizes{50752, 10000000, 64}, Sizes{355000, 1000000, 8}}) {
    EXPECT_LE(fused_workspace<NearestCentroidForward>(size), kMost);
    EXPECT_LE(fused_workspace<CosineCrossEntropyForward>(size), kMost);
    const int64_t rows = size.batch * size.width * 4 * 2;  // recalled features and the gate
    EXPECT_LE(fused_workspace<MemoryAttentionForward>(size), kMost + rows);
    EXPECT_LE(fused_workspace<MetaEmbeddingForward>(size), kMost + rows);
  }
}

}  // namespace
}  // namespace oltr::testing
