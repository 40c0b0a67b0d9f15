// The CUDA sources on the host, each CUDA thread a fiber, under schedules drawn at random.
#include <cuda_runtime.h>

#include "cuda/nearest_centroid_kernel.cu"
#include "testing/ops.h"

namespace oltr::testing {
namespace {

struct Found {
  Array distance, index;
};

Found nearest_on_host(Sizes size, Dtype dtype, const Array& x, const Array& memory) {
  Storage s(dtype);
  NearestCentroidForward p{
      size, dtype, s.in(x), s.in(memory), s.out(size.batch), s.out_index(size.batch)};
  EXPECT_EQ(cuda::nearest_centroid_forward(p, nullptr), cudaSuccess);
  EXPECT_TRUE(s.intact()) << "wrote out of bounds";
  return {read(p.distance, size.batch), read(p.index, size.batch)};
}

TEST(CudaOnHost, NearestCentroidMatchesNaiveLoops) {
  const std::pair<Dtype, double> tolerances[] = {{Dtype::kFloat64, 1e-13},
                                                 {Dtype::kFloat32, 1e-6},
                                                 {Dtype::kBFloat16, 4e-3},
                                                 {Dtype::kFloat16, 6e-4}};
  for (const Sizes size : {Sizes{0, 3, 5}, Sizes{1, 1, 1}, Sizes{3, 7, 33}, Sizes{2, 29, 64}}) {
    std::mt19937 random(3);
    const NearestCentroid op(size, random);
    const Arrays want = op.naive(op.inputs);
    for (const auto& [dtype, tolerance] : tolerances) {
      const Found got = nearest_on_host(size, dtype, op.inputs[0], op.inputs[1]);
      EXPECT_EQ(got.index, want[1]);
      for (int64_t b = 0; b < size.batch; ++b)
        EXPECT_NEAR(got.distance[b], want[0][b], tolerance * want[0][b]);
    }
  }
}

TEST(CudaOnHost, NearestCentroidSameBitsUnderAnySchedule) {
  std::mt19937 random(4);
  const NearestCentroid op(Sizes{2, 21, 40}, random);
  const Found first = nearest_on_host(op.size, Dtype::kFloat32, op.inputs[0], op.inputs[1]);
  for (int i = 0; i < 5; ++i) {
    const Found again = nearest_on_host(op.size, Dtype::kFloat32, op.inputs[0], op.inputs[1]);
    EXPECT_EQ(again.distance, first.distance);
    EXPECT_EQ(again.index, first.index);
  }
}

TEST(CudaOnHost, NearestCentroidTiesAndNan) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const Sizes size{3, 12, 1};
  const Array x{0, nan, 5};
  Array memory(12, 9.0);
  memory[10] = memory[3] = memory[2] = 1;  // three warps hold the same distance
  Found got = nearest_on_host(size, Dtype::kFloat32, x, memory);
  EXPECT_EQ(got.index, (Array{2, 0, 0}));
  EXPECT_EQ(got.distance[0], 1);
  EXPECT_TRUE(std::isnan(got.distance[1]));
  EXPECT_EQ(got.distance[2], 4);

  memory[7] = memory[9] = nan;
  got = nearest_on_host(size, Dtype::kFloat32, x, memory);
  EXPECT_EQ(got.index, (Array{7, 0, 7}));
  for (const double d : got.distance) EXPECT_TRUE(std::isnan(d));
}

// The host stand-in itself: forgetting a barrier, or not all reaching it, must show.
void reversed(int* out, int n, bool wait) {
  OLTR_DYNAMIC_SHARED(shared);
  int* values = reinterpret_cast<int*>(shared);
  const int t = static_cast<int>(threadIdx.x);
  values[t] = t;
  if (wait) __syncthreads();
  out[t] = values[n - 1 - t];
}

TEST(CudaOnHost, AMissingBarrierShows) {
  constexpr int kThreads = 64;
  std::vector<int> out(kThreads), want(kThreads);
  for (int t = 0; t < kThreads; ++t) want[t] = kThreads - 1 - t;
  const cuda::Launch l{1, kThreads, kThreads * static_cast<int64_t>(sizeof(int))};
  OLTR_LAUNCH(reversed, l, nullptr, out.data(), kThreads, true);
  EXPECT_EQ(out, want);
  OLTR_LAUNCH(reversed, l, nullptr, out.data(), kThreads, false);
  EXPECT_NE(out, want);
}

}  // namespace
}  // namespace oltr::testing
