#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "cuda/kernels.h"

namespace oltr {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false,
                      "nearest_centroid: expected x in float32, float64, bfloat16 or float16");
  }
}

cudaStream_t current_stream(const Tensor& t) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

std::tuple<Tensor, Tensor> nearest_centroid(const Tensor& x, const Tensor& memory) {
  STD_TORCH_CHECK(x.dim() == 2 && memory.dim() == 2 && x.size(1) == memory.size(1),
                  "nearest_centroid: expected x (B, D) and memory (C, D)");
  STD_TORCH_CHECK(memory.size(0) > 0 && memory.size(1) > 0,
                  "nearest_centroid: expected at least one class and one feature");
  STD_TORCH_CHECK(x.scalar_type() == memory.scalar_type(),
                  "nearest_centroid: expected x and memory of one dtype");
  STD_TORCH_CHECK(memory.is_cuda() && x.get_device_index() == memory.get_device_index(),
                  "nearest_centroid: expected x and memory on one device");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());

  const Tensor rows = torch::stable::contiguous(x);
  const Tensor bank = torch::stable::contiguous(memory);
  const int64_t B = x.size(0);
  Tensor distance = torch::stable::new_empty(x, {B});
  Tensor index = torch::stable::new_empty(x, {B}, ScalarType::Long);

  const Dtype dtype = dtype_of(x);
  NearestCentroidForward p;
  p.size = {B, memory.size(0), x.size(1)};
  p.dtype = dtype;
  p.x = {rows.const_data_ptr(), dtype};
  p.memory = {bank.const_data_ptr(), dtype};
  p.distance = {distance.mutable_data_ptr(), dtype};
  p.index = static_cast<int64_t*>(index.mutable_data_ptr());
  STD_CUDA_CHECK(cuda::nearest_centroid_forward(p, current_stream(x)));
  return {distance, index};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(oltr_ext, CUDA, m) {
  m.impl("nearest_centroid", TORCH_BOX(&nearest_centroid));
}

}  // namespace oltr
