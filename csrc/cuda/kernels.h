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

#define OLTR_CUDA_OP(Op, op)                                     \
  int64_t workspace_bytes(const Op##Forward& p, Device device);  \
  int64_t workspace_bytes(const Op##Backward& p, Device device); \
  void enqueue(const Op##Forward& p, Queue& queue);              \
  void enqueue(const Op##Backward& p, Queue& queue);
OLTR_EACH_OP(OLTR_CUDA_OP)
#undef OLTR_CUDA_OP

}  // namespace oltr::cuda
