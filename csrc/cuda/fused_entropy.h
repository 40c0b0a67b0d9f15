// The pass of cosine cross-entropy over the bank in one kernel, for half types: on FusedTile, both slabs
// of the weights. A warp has 16 rows and every other slab: softmax state, the target's logit and the sum
// of the possible logits, two of each a row and part of the bank. merge_entropy_kernel joins them.
#pragma once

#include "cuda/fused_tile.h"

namespace oltr::cuda {

// Logits are scale / ((1 + |v|) |w|) v . w + prior.
template <class S>
struct FusedEntropy {
  const S *v, *weight;    // (B,D) (C,D)
  const float* prior;     // (C), may be absent
  const int64_t* target;  // (B)
  float scale;
  bool smoothed;  // totals are wanted
  int64_t rows, classes, width, row_blocks, parts;
  float *max, *sum, *picked, *total;  // (2 parts, B)
};

template <class S, int kWidth, int kSlab>
class EntropyBlock : FusedTile<S, kWidth, kSlab, 2 * kSlab> {
  using Tile = FusedTile<S, kWidth, kSlab, 2 * kSlab>;
  using Tile::begin, Tile::end, Tile::kEights, Tile::lane, Tile::length, Tile::over_columns;
  using Tile::own_column, Tile::own_row, Tile::part, Tile::row0, Tile::slab, Tile::y;

 public:
  __device__ EntropyBlock(const FusedEntropy<S>& params, unsigned char* shared)
      : Tile(shared, params.row_blocks, params.parts, params.rows, params.classes, params.width),
        p(params) {}

  __device__ __forceinline__ void run() {
    const auto load = [&](S* stage, int first) {
      copy_rows<2 * kSlab, kWidth>(stage, p.weight, first, end, p.width);
    };
    this->for_each_tile(p.v, p.rows, p.width, load, [&](const S* stage, int first, int count) {
      if (first == begin) start();
      const int own_first = first + slab * kSlab;
      const int own_count = count - slab * kSlab;
      // Asked for early, a class a lane: it comes from far away. What is no class is impossible.
      float prior = lane < own_count ? 0 : -kInfinity;
      if (p.prior != nullptr && lane < own_count) prior = read(p.prior + own_first + lane);
      this->template multiply<true>(this->own_slab(stage));
      __syncthreads();  // the other half of the width is there
      this->add_other_half();
      join(own_first, prior);
    });
    store_state();
  }

 private:
  __device__ __forceinline__ void start() {
    this->measure_lengths();
    OLTR_UNROLL(2)
    for (int r = 0; r < 2; ++r) {
      const int64_t row = row0() + own_row() + 8 * r;
      share[r] = 1 / (1 + length[r]);
      const int64_t own = row < p.rows ? read(p.target + row) : -1;
      target[r] = own >= begin && own < end ? static_cast<int>(own) : -1;
    }
  }

  __device__ __forceinline__ void join(int first, float prior) {
    const float squares = lane < kSlab ? this->squares_of(lane) : 0.0f;
    const float scale = squares == 0.0f ? 0.0f : p.scale / sqrt(squares);  // of the lane's class
    float high[2] = {m[0], m[1]};
    OLTR_UNROLL(8)
    for (int i = 0; i < 2 * kEights; ++i) {
      const int column = own_column(i / 2) + i % 2;
      const float factor = __shfl_sync(kAllLanes, scale, column);
      const float offset = __shfl_sync(kAllLanes, prior, column);
      OLTR_UNROLL(2)
      for (int r = 0; r < 2; ++r) {
        float& z = y[i / 2][2 * r + i % 2];
        z = z * share[r] * factor + offset;
        high[r] = Largest()(high[r], z);
        if (p.smoothed && z > Identity<float>::max) total[r] += z;
      }
    }
    const auto in_slab = [&](int c) { return c >= first && c < first + kSlab; };
    if (__ballot_sync(kAllLanes, in_slab(target[0]) || in_slab(target[1])) != 0) {
      OLTR_UNROLL(16)
      for (int i = 0; i < 4 * kEights; ++i)
        if (first + own_column(i / 4) + i % 2 == target[i % 4 / 2])
          picked[i % 4 / 2] = y[i / 4][i % 4];
    }
    OLTR_UNROLL(2)
    for (int r = 0; r < 2; ++r) {
      high[r] = over_columns(high[r], Largest());
      float sum = 0;
      OLTR_UNROLL(8)
      for (int i = 0; i < 2 * kEights; ++i) sum += exp(y[i / 2][2 * r + i % 2] - high[r]);
      float keep, take;
      merge_softmax(m[r], l[r], high[r], sum, keep, take, [](float a) { return exp(a); });
    }
  }

  __device__ __forceinline__ void store_state() {
    OLTR_UNROLL(2)
    for (int r = 0; r < 2; ++r) {
      const float sum = over_columns(l[r], Add()), all = over_columns(total[r], Add());
      const float own = over_columns(picked[r], Add());  // of one lane, zero in the others
      const int64_t row = row0() + own_row() + 8 * r, to = (2 * part() + slab) * p.rows + row;
      if (row >= p.rows || lane % 4 != 0) continue;
      p.max[to] = m[r];
      p.sum[to] = sum;
      p.picked[to] = own;
      p.total[to] = all;
    }
  }

  const FusedEntropy<S>& p;
  // Of the lane's two rows; sums of its own columns.
  int target[2];   // -1 if it is not of this part
  float share[2];  // 1 / (1 + |v|)
  float m[2] = {Identity<float>::max, Identity<float>::max}, l[2] = {};
  float picked[2] = {}, total[2] = {};
};

template <class S, int kWidth, int kSlab>
__global__ void __launch_bounds__(kThreads, fused_blocks(kWidth))
    fused_entropy_kernel(FusedEntropy<S> p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  OLTR_DYNAMIC_SHARED(shared);
  EntropyBlock<S, kWidth, kSlab>(p, shared).run();
#else
  __trap();  // no such instructions; nor does a launcher choose this on such a device
#endif
}

// The states of a row become the first of them. A warp a row.
inline __global__ void merge_entropy_kernel(float* max, float* sum, float* picked, float* total,
                                            int64_t states, int64_t rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (row >= rows) return;
  float high = Identity<float>::max, l = 0, own = 0, all = 0;
  for (int64_t s = lane_index(); s < states; s += kWarp)
    high = Largest()(high, max[s * rows + row]);
  high = warp_reduce(high, Largest());
  for (int64_t s = lane_index(); s < states; s += kWarp) {
    float keep, take;
    merge_softmax(high, l, max[s * rows + row], sum[s * rows + row], keep, take,
                  [](float a) { return exp(a); });
    own += picked[s * rows + row];
    all += total[s * rows + row];
  }
  l = warp_reduce(l, Add());
  own = warp_reduce(own, Add());
  all = warp_reduce(all, Add());
  if (lane_index() != 0) return;
  max[row] = high;
  sum[row] = l;
  picked[row] = own;
  total[row] = all;
}

template <class S>
void fused_entropy(Queue& queue, const FusedPlan& plan, const FusedEntropy<S>& p) {
  with_shape(plan, [&](auto s) {
    using K = decltype(s);
    launch(queue, fused_entropy_kernel<S, K::kWidth, K::kSlab>,
           {p.row_blocks * p.parts, kThreads, plan.shared_bytes}, p);
  });
  launch(queue, merge_entropy_kernel, blocks_of(p.rows, kWarps), p.max, p.sum, p.picked, p.total,
         plan.states, p.rows);
}

}  // namespace oltr::cuda
