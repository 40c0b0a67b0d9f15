// Features of any size on the CUDA sources, by chunks and fused: see testing/extremes.h.
#include "testing/extremes.h"

#include "testing/on_host.h"

namespace oltr::testing {
namespace {

class CudaExtremes : public ::testing::TestWithParam<cuda::Device> {
 protected:
  CudaExtremes() { device = GetParam(); }
  ~CudaExtremes() override { device = {1}; }
};
// Chunks alone; halves fused, in several parts.
INSTANTIATE_TEST_SUITE_P(Passes, CudaExtremes,
                         ::testing::Values(cuda::Device{1}, cuda::Device{1, 5, 227 << 10}));

TEST_P(CudaExtremes, TheNearestClassScales) { expect_nearest_scales(cuda_kernels, {3, 130, 8}); }
TEST_P(CudaExtremes, OneBankOfAllSizes) { expect_nearest_of_mixed_sizes(cuda_kernels); }
TEST_P(CudaExtremes, FlatRowsFindThemselves) { expect_nearest_of_flat_rows(cuda_kernels); }
TEST_P(CudaExtremes, NanAndInfinity) { expect_nearest_of_nan_and_infinity(cuda_kernels); }
TEST_P(CudaExtremes, TheMetaEmbeddingScales) {
  expect_embedding_of_subnormal_numbers(cuda_kernels);
  expect_embedding_scales(cuda_kernels, {3, 130, 8});
}

}  // namespace
}  // namespace oltr::testing
