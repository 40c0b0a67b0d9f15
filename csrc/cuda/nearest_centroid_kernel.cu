// distance = min_c |x - memory_c|, index = its class, as the plain sum of squared differences.
#include <cstdint>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace oltr::cuda {
namespace {

template <Dtype kDtype>
struct Element;
template <>
struct Element<Dtype::kFloat32> {
  using Stored = float;
  using Accumulator = float;
  __device__ static float load(float v) { return v; }
};
template <>
struct Element<Dtype::kFloat64> {
  using Stored = double;
  using Accumulator = double;
  __device__ static double load(double v) { return v; }
};
template <>
struct Element<Dtype::kBFloat16> {
  using Stored = uint16_t;
  using Accumulator = float;
  __device__ static float load(uint16_t v) { return bfloat16_to_float(v); }
};
template <>
struct Element<Dtype::kFloat16> {
  using Stored = uint16_t;
  using Accumulator = float;
  __device__ static float load(uint16_t v) { return float16_to_float(v); }
};

// The sum over the warp, in every lane and in one fixed order.
template <class T>
__device__ T warp_sum(T v) {
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffffu, v, step);
  return v;
}

template <Dtype kDtype>
__global__ void nearest_centroid_kernel(NearestCentroidForward p) {
  using E = Element<kDtype>;
  using Acc = typename E::Accumulator;
  OLTR_DYNAMIC_SHARED(shared);  // indices first, then distances: both aligned
  const int warps = blockDim.x / kWarp;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  int64_t* indices = reinterpret_cast<int64_t*>(shared);
  Acc* distances = reinterpret_cast<Acc*>(indices + warps);

  const int64_t row = blockIdx.x;
  const int64_t width = p.size.width;
  const auto* x = static_cast<const typename E::Stored*>(p.x.data) + row * width;
  const auto* memory = static_cast<const typename E::Stored*>(p.memory.data);

  Acc best = Identity<Acc>::distance2;
  int64_t index = Identity<Acc>::index;
  for (int64_t c = warp; c < p.size.classes; c += warps) {
    const auto* centroid = memory + c * width;
    Acc sum = 0;
    for (int64_t d = lane; d < width; d += kWarp) {
      const Acc difference = E::load(x[d]) - E::load(centroid[d]);
      sum += difference * difference;
    }
    sum = warp_sum(sum);
    if (closer(sum, c, best, index)) {
      best = sum;
      index = c;
    }
  }
  if (lane == 0) {
    distances[warp] = best;
    indices[warp] = index;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < warps; ++w) {
    if (closer(distances[w], indices[w], best, index)) {
      best = distances[w];
      index = indices[w];
    }
  }
  const Acc distance = sqrt(best);
  convert_out(&distance, 1, p.distance.data, p.distance.dtype, row);
  p.index[row] = index;
}

template <Dtype kDtype>
cudaError_t launch(const NearestCentroidForward& p, cudaStream_t stream) {
  const Launch l =
      nearest_centroid_launch(p.size.batch, sizeof(typename Element<kDtype>::Accumulator));
  OLTR_LAUNCH(nearest_centroid_kernel<kDtype>, l, stream, p);
  return cudaGetLastError();
}

}  // namespace

cudaError_t nearest_centroid_forward(const NearestCentroidForward& p, cudaStream_t stream) {
  if (p.size.batch == 0) return cudaSuccess;
  switch (p.dtype) {
    case Dtype::kFloat32:
      return launch<Dtype::kFloat32>(p, stream);
    case Dtype::kFloat64:
      return launch<Dtype::kFloat64>(p, stream);
    case Dtype::kBFloat16:
      return launch<Dtype::kBFloat16>(p, stream);
    case Dtype::kFloat16:
      return launch<Dtype::kFloat16>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace oltr::cuda
