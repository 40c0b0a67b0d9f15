// The CUDA kernels: one launcher an op and direction. Free of torch; csrc/torch/*_cuda.cpp calls
// them.
//
// Contract: pointers are device memory, valid for the sizes given; C >= 1 and D >= 1, B may be 0.
// A launcher only enqueues on `stream`; it returns the launch's error and never synchronises.
#pragma once

#include <cuda_runtime.h>

#include "common/params.h"

namespace oltr::cuda {

cudaError_t nearest_centroid_forward(const NearestCentroidForward& p, cudaStream_t stream);

}  // namespace oltr::cuda
