// How the tests run the CUDA sources on the host: the ops' table, and what a device is taken to be.
#pragma once

#include <cuda_runtime.h>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/product_cublas.h"
#include "testing/checks.h"

namespace oltr::testing {

// Chunks so small that a few hundred classes make several of them, and nothing fused.
inline cuda::Device device{1};

inline cuda::Status multiply(const cuda::Product& p) { return cuda::product_cublas(nullptr, p); }

template <class Params>
void on_host(const Params& p, const Parallel&) {
  Fenced workspace(static_cast<size_t>(cuda::workspace_bytes(p, device)));
  cuda::Queue queue{nullptr, multiply, workspace.data(), device};
  cuda::enqueue(p, queue);
  EXPECT_EQ(queue.error, nullptr);
  EXPECT_TRUE(workspace.intact()) << "wrote beyond the workspace";
}

// On a GPU torch sorts the labels.
inline void on_host(const ClassMeansForward& p, const Parallel& parallel) {
  Labels order(static_cast<size_t>(p.size.batch)), sorted(order.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return p.target[a] < p.target[b]; });
  for (size_t i = 0; i < order.size(); ++i) sorted[i] = p.target[order[i]];
  ClassMeansForward grouped = p;
  grouped.sorted = sorted.data();
  grouped.order = order.data();
  on_host<ClassMeansForward>(grouped, parallel);
}

#define OLTR_ON_HOST(Op, op) , on_host, on_host
inline const KernelTable cuda_kernels{"cuda on the host" OLTR_EACH_OP(OLTR_ON_HOST)};
#undef OLTR_ON_HOST

struct Found {
  Array distance, index;
};
inline Found nearest_on_host(Sizes size, Dtype dtype, const Array& x, const Array& memory,
                             Precision precision = Precision::kHighest) {
  Storage s(dtype);
  NearestCentroidForward p{
      size, dtype, s.in(x), s.in(memory), s.out(size.batch), s.out_index(size.batch), precision};
  on_host(p, parallel);
  EXPECT_TRUE(s.intact()) << "wrote out of bounds";
  return {read(p.distance, size.batch), read(p.index, size.batch)};
}

}  // namespace oltr::testing
