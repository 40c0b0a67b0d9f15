// The fused forward pass: its kernel (fused_block.h) over every part of the bank, then the parts' states
// merged.
#pragma once

#include "cuda/fused_block.h"

namespace oltr::cuda {

// The parts' states become that of part 0, and the nearest classes the op's. A block a row.
template <bool kAttend, bool kNearest>
__global__ void merge_parts_kernel(float* max, float* sum, float* recalled, int64_t parts,
                                   float* distance2, const int64_t* found, int64_t found_parts,
                                   int64_t* index, int64_t rows, int64_t width) {
  OLTR_DYNAMIC_SHARED(shared);
  const int64_t row = blockIdx.x;
  if (kNearest && warp_index() == 0) {
    float d2 = Identity<float>::distance2;
    int64_t k = Identity<float>::index;
    const auto take = [&](float other, int64_t c) {
      if (!closer(other, c, d2, k)) return;
      d2 = other;
      k = c;
    };
    for (int64_t part = lane_index(); part < found_parts; part += kWarp)
      take(distance2[part * rows + row], found[part * rows + row]);
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, d2, step);
      take(other, __shfl_xor_sync(kAllLanes, k, step));
    }
    if (lane_index() == 0) {
      distance2[row] = d2;
      index[row] = k;
    }
  }
  if (!kAttend) return;
  float* share = reinterpret_cast<float*>(shared + kSharedBytes);  // by which each part enters
  float high = Identity<float>::max;
  for (int64_t part = threadIdx.x; part < parts; part += kThreads)
    high = Largest()(high, max[part * rows + row]);
  high = block_reduce(high, Largest(), shared);
  float total = 0;
  for (int64_t part = threadIdx.x; part < parts; part += kThreads) {
    float kept;
    merge_softmax(high, total, max[part * rows + row], sum[part * rows + row], kept, share[part],
                  [](float v) { return exp(v); });
  }
  total = block_reduce(total, Add(), shared);
  for (int64_t d = threadIdx.x; d < width; d += kThreads) {
    float o = 0;
    OLTR_UNROLL(8)
    for (int64_t part = 0; part < parts; ++part)
      o += share[part] * recalled[(part * rows + row) * width + d];
    recalled[row * width + d] = o;
  }
  if (threadIdx.x != 0) return;
  max[row] = high;
  sum[row] = total;
}

template <class S, bool kAttend, bool kNearest>
void fused_forward(Queue& queue, const FusedPlan& plan, const Fused<S>& p, int64_t* index) {
  with_shape(plan, [&](auto s) {
    using K = decltype(s);
    launch(queue, fused_forward_kernel<S, K::kWidth, K::kSlab, kAttend, kNearest>,
           {p.row_blocks * p.parts, kThreads, plan.shared_bytes}, p);
  });
  if (plan.states == 1) return;
  launch(queue, merge_parts_kernel<kAttend, kNearest>,
         {p.rows, kThreads, kSharedBytes + p.parts * static_cast<int64_t>(sizeof(float))}, p.max,
         p.sum, p.recalled, p.parts, p.distance2, static_cast<const int64_t*>(p.index), plan.states,
         index, p.rows, p.width);
}

}  // namespace oltr::cuda
