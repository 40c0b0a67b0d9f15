// The CUDA kernels: one launcher an op and direction. Free of torch; csrc/torch/ops_cuda.cpp calls
// them.
//
// Contract: pointers are device memory, valid for the sizes given; C >= 1 and D >= 1, B may be 0.
// A launcher only enqueues; it never synchronises, so that a CUDA graph can capture it. The same
// inputs give the same bits. Labels are not checked here, nor a backward's index of the nearest
// class: one out of range makes NaN of its row's loss, of the gradients and of class means, and is
// never used as an index.
#pragma once

#include <cuda_runtime.h>

#include "common/params.h"
#include "cuda/launch.h"
#include "cuda/product.h"

namespace oltr::cuda {

// What a launcher enqueues on, and with. The first error stops all that follows.
struct Queue {
  cudaStream_t stream;
  Status (*multiply)(const Product& product);
  void* workspace;  // workspace_bytes(params, device) of device memory, aligned to 256 bytes
  Device device = {kChunkBytes};
  Status error = nullptr;
};

#define OLTR_CUDA_OP(Params)                               \
  int64_t workspace_bytes(const Params& p, Device device); \
  void enqueue(const Params& p, Queue& queue);
OLTR_CUDA_OP(MemoryAttentionForward)
OLTR_CUDA_OP(MemoryAttentionBackward)
OLTR_CUDA_OP(NearestCentroidForward)
OLTR_CUDA_OP(NearestCentroidBackward)
OLTR_CUDA_OP(MetaEmbeddingForward)
OLTR_CUDA_OP(MetaEmbeddingBackward)
OLTR_CUDA_OP(CosineLogitsForward)
OLTR_CUDA_OP(CosineLogitsBackward)
OLTR_CUDA_OP(CosineCrossEntropyForward)
OLTR_CUDA_OP(CosineCrossEntropyBackward)
OLTR_CUDA_OP(DiscCentroidsForward)
OLTR_CUDA_OP(DiscCentroidsBackward)
OLTR_CUDA_OP(ClassMeansForward)
OLTR_CUDA_OP(ClassMeansBackward)
#undef OLTR_CUDA_OP

}  // namespace oltr::cuda
