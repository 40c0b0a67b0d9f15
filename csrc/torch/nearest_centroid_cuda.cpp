#include "cuda/kernels.h"
#include "torch/glue_cuda.h"

namespace oltr {

static std::tuple<Tensor, Tensor> nearest_centroid(const Tensor& x, const Tensor& memory,
                                                   const std::string& precision) {
  Call call("nearest_centroid", "x", x);
  const CurrentDevice device(x);
  const int64_t B = x.size(0), D = x.size(1), C = memory.size(0);
  call.at_least_one("class", C);
  call.at_least_one("feature", D);
  const Tensor distance = call.empty({B}), index = call.empty_index({B});
  NearestCentroidForward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.precision = kernel_precision("nearest_centroid", precision);
  p.x = call.in("x", x, {B, D});
  p.memory = call.in("memory", memory, {C, D});
  p.distance = call.out(distance);
  p.index = index.mutable_data_ptr<int64_t>();
  STD_CUDA_CHECK(cuda::nearest_centroid_forward(p, device.stream()));
  return {distance, index};
}

STABLE_TORCH_LIBRARY_IMPL(oltr_ext, CUDA, m) {
  m.impl("nearest_centroid", TORCH_BOX(&nearest_centroid));
}

}  // namespace oltr
