// A forward pass over the bank in one kernel, for half types: no logit leaves the chip. On FusedTile, of
// whose two slabs one is of the keys and one of the memory, of the same classes; where only distances
// are asked for, both of the memory. Per tile:
//
//   products   logits, and x . c
//   epilogue   warps of the keys: max, weights, sum; warps of the memory: candidates, measured
//   recall     every warp: weights times the tile's memory, for its share of the width
//
// Each part of the bank leaves a row state (m, l, o, d2, k); merge_parts_kernel joins them.
#pragma once

#include <limits>

#include "cuda/fused_tile.h"

namespace oltr::cuda {

template <class S>
struct Fused {
  const S *x, *keys, *bias, *memory;
  int64_t rows, classes, width, row_blocks, parts;
  float *max, *sum, *recalled;  // (parts,B) (parts,B) (parts,B,D)
  float* distance2;             // (found_parts,B)
  int64_t* index;               // (found_parts,B)
  float unit;                   // of rounding in products, see Nearest
};

template <class S, int kWidth, int kSlab, bool kAttend, bool kNearest>
class FusedBlock : FusedTile<S, kWidth, kSlab, kAttend ? kSlab : 2 * kSlab> {
  using Tile = FusedTile<S, kWidth, kSlab, kAttend ? kSlab : 2 * kSlab>;
  using Tile::begin, Tile::end, Tile::kEights, Tile::kOctets, Tile::lane, Tile::length;
  using Tile::over_columns, Tile::own_column, Tile::own_row, Tile::part, Tile::row0, Tile::row_half,
      Tile::rows_here;
  using Tile::slab, Tile::warp, Tile::x, Tile::y;
  // Of a row's weights, so that eight rows miss one another's banks.
  static constexpr int kWeightStride = kSlab + 8;
  static constexpr int kNoClass = std::numeric_limits<int>::max();
  static constexpr int kShare = kOctets / kWarps;  // octets of the width that a warp recalls

 public:
  __device__ FusedBlock(const Fused<S>& params, unsigned char* shared)
      : Tile(shared, params.row_blocks, params.parts, params.rows, params.classes, params.width),
        p(params),
        keep(this->rest),
        weights(reinterpret_cast<S*>(keep + kFusedRows)) {}

  __device__ __forceinline__ void run() {
    const auto load = [&](S* stage, int first) {
      if (kAttend) {
        copy_rows<kSlab, kWidth>(stage, p.keys, first, end, p.width);
        copy_rows<kSlab, kWidth>(stage + kSlab * kWidth, p.memory, first, end, p.width);
      } else {
        copy_rows<2 * kSlab, kWidth>(stage, p.memory, first, end, p.width);
      }
    };
    this->for_each_tile(p.x, p.rows, p.width, load, [&](const S* stage, int first, int count) {
      if (kNearest && measures() && first == begin) this->measure_lengths();
      const S* rows = this->own_slab(stage);
      // Asked for early, a class a lane: it comes from far away.
      float bias = 0;
      if (kAttend && slab == 0 && lane < count) bias = widen(read(p.bias + first + lane));
      if (kNearest && measures()) {
        this->template multiply<true>(rows);
      } else if (slab == 0) {
        this->template multiply<false>(rows);
      }
      __syncthreads();  // the other half of the width is there
      if (kNearest || slab == 0) this->add_other_half();
      if (kAttend && slab == 0) attend(bias, count);
      if (kNearest && measures()) {
        const int before = kAttend ? 0 : slab * kSlab;
        find_nearest(rows, first + before, count - before);
      }
      if (!kAttend) return;
      __syncthreads();  // the weights are there
      recall(stage + kSlab * kWidth);
    });
    if (kAttend) store_recalled();
    store_state();
  }

 private:
  __device__ bool measures() const { return !kAttend || slab == 1; }

  // `bias` is that of the lane's class, of which `count` are there.
  __device__ __forceinline__ void attend(float bias, int count) {
    float high[2] = {m[0], m[1]};
    OLTR_UNROLL(8)
    for (int i = 0; i < 2 * kEights; ++i) {
      const int column = own_column(i / 2) + i % 2;
      const float offset = __shfl_sync(kAllLanes, bias, column);
      OLTR_UNROLL(2)
      for (int r = 0; r < 2; ++r) {
        float& z = y[i / 2][2 * r + i % 2];
        z = column < count ? z + offset : -kInfinity;
        high[r] = Largest()(high[r], z);
      }
    }
    OLTR_UNROLL(2)
    for (int r = 0; r < 2; ++r) {
      high[r] = over_columns(high[r], Largest());
      float sum = 0;
      OLTR_UNROLL(4)
      for (int n = 0; n < kEights; ++n) {
        Pack<S, 2> pair;
        OLTR_UNROLL(2)
        for (int e = 0; e < 2; ++e) {
          const float weight = exp(y[n][2 * r + e] - high[r]);
          pair.v[e] = narrow<S>(weight);
          sum += weight;
        }
        store_pack(weights + (own_row() + 8 * r) * kWeightStride + own_column(n), pair);
      }
      float kept, take;
      merge_softmax(m[r], l[r], high[r], sum, kept, take, [](float v) { return exp(v); });
      if (lane % 4 == 0) keep[own_row() + 8 * r] = kept;
    }
  }

  // As find_nearest in bank_forward.h, of what lies in shared memory.
  __device__ __forceinline__ void find_nearest(const S* rows, int first, int count) {
    float low[2] = {Identity<float>::distance2, Identity<float>::distance2};
    OLTR_UNROLL(8)
    for (int i = 0; i < 2 * kEights; ++i) {
      const int column = own_column(i / 2) + i % 2;
      const float squares = this->squares_of(column);
      if (column < count) largest = Largest()(largest, squares);
      OLTR_UNROLL(2)
      for (int r = 0; r < 2; ++r) {
        float& score = y[i / 2][2 * r + i % 2];
        score = squares / 2 - score;
        if (column < count) low[r] = Smallest()(low[r], score);
      }
    }
    largest = over_columns(largest, Largest());
    unsigned near = 0;  // bit 8 r + i: the lane's i-th element of its r-th row is a candidate
    OLTR_UNROLL(2)
    for (int r = 0; r < 2; ++r) {
      best[r] = Smallest()(best[r], over_columns(low[r], Smallest()));
      const float limit = best[r] + p.unit * (length[r] * sqrt(largest) + largest / 2);
      // Classes come in ascending order: after NaN, none comes before it.
      const bool row = own_row() + 8 * r < rows_here && distance2[r] == distance2[r];
      OLTR_UNROLL(8)
      for (int i = 0; i < 2 * kEights; ++i) {
        const bool there = row && own_column(i / 2) + i % 2 < count;
        if (there && !(y[i / 2][2 * r + i % 2] > limit)) near |= 1u << (8 * r + i);
      }
    }
    for (;;) {
      const unsigned asking = __ballot_sync(kAllLanes, near != 0);
      if (asking == 0) return;
      measure(asking, near, rows, first);
    }
  }
  // Of the lanes that have candidates, four at most measure their first one, with eight lanes each.
  __device__ __forceinline__ void measure(unsigned asking, unsigned& near, const S* rows,
                                          int first) {
    unsigned left = asking;
    OLTR_UNROLL(3)
    for (int i = 0; i < 3; ++i)
      if (i < lane / 8) left &= left - 1;
    const int from = __ffs(static_cast<int>(left != 0 ? left : asking)) - 1;
    const int bit = __shfl_sync(kAllLanes, __ffs(static_cast<int>(near)) - 1, from);
    const int row = own_row() - lane / 4 + bit / 8 * 8 + from / 4;
    const int column = bit % 8 / 2 * 8 + from % 4 * 2 + bit % 2;
    const float d2 = this->over_octets([&](int octet) {
      const auto a = *reinterpret_cast<const Pack<S, 8>*>(x + Tile::at(row, octet));
      const auto b = *reinterpret_cast<const Pack<S, 8>*>(rows + Tile::at(column, octet));
      float sum = 0;
      OLTR_UNROLL(8)
      for (int j = 0; j < 8; ++j) {
        const float gap = widen(a.v[j]) - widen(b.v[j]);
        sum += gap * gap;
      }
      return sum;
    });
    OLTR_UNROLL(4)
    for (int group = 0; group < 4; ++group) {
      const float other = __shfl_sync(kAllLanes, d2, 8 * group);
      const int c = first + __shfl_sync(kAllLanes, column, 8 * group);
      const int owner = __shfl_sync(kAllLanes, left != 0 ? from : -1, 8 * group);
      const int its_row = __shfl_sync(kAllLanes, bit / 8, 8 * group);
      if (owner == lane) near &= near - 1;
      const bool mine = owner >= 0 && owner / 4 == lane / 4;
      // Not in a loop, which would be taken for an index: indexed arrays do not stay in registers.
      take(mine && its_row == 0, other, c, distance2[0], index[0]);
      take(mine && its_row == 1, other, c, distance2[1], index[1]);
    }
  }
  static __device__ __forceinline__ void take(bool offered, float d2, int c, float& least,
                                              int& nearest) {
    const bool wins = offered && closer(d2, c, least, nearest);
    least = wins ? d2 : least;
    nearest = wins ? c : nearest;
  }

  __device__ __forceinline__ void recall(const S* memory) {
    bool changed = false;
    float factor[4][2];
    OLTR_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
      factor[i / 2][i % 2] = keep[i * 8 + lane / 4];
      changed |= factor[i / 2][i % 2] != 1.0f;
    }
    if (__ballot_sync(kAllLanes, changed) != 0) {
      OLTR_UNROLL(4)
      for (int i = 0; i < 4; ++i) {
        OLTR_UNROLL(32)
        for (int j = 0; j < kShare * 4; ++j) o[i][j / 4][j % 4] *= factor[i][j % 4 / 2];
      }
    }
    OLTR_UNROLL(2)
    for (int k = 0; k < kSlab; k += 16) {
      uint32_t a[4][4];
      OLTR_UNROLL(4)
      for (int i = 0; i < 4; ++i)
        load_matrices(a[i], weights + (i * 16 + lane % 16) * kWeightStride + k + lane / 16 * 8);
      OLTR_UNROLL(4)
      for (int j = 0; j < kShare; j += 2) {
        uint32_t b[4];
        load_matrices<true>(b, memory + Tile::at(k + lane % 16, warp * kShare + j + lane / 16));
        OLTR_UNROLL(8)
        for (int i = 0; i < 8; ++i)
          multiply_add<S>(o[i / 2][j + i % 2], a[i / 2], b[i % 2 * 2], b[i % 2 * 2 + 1]);
      }
    }
  }

  __device__ __forceinline__ void store_recalled() {
    OLTR_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
      const int64_t row = row0() + i * 8 + lane / 4;
      if (row >= p.rows) continue;
      float* to = p.recalled + (part() * p.rows + row) * p.width;
      OLTR_UNROLL(8)
      for (int j = 0; j < kShare; ++j) {
        const int column = (warp * kShare + j) * 8 + lane % 4 * 2;
        const int e = i % 2 * 2;
        if (column < p.width)
          store_pack(to + column, Pack<float, 2>{{o[i / 2][j][e], o[i / 2][j][e + 1]}});
      }
    }
  }
  __device__ __forceinline__ void store_state() {
    OLTR_UNROLL(2)
    for (int r = 0; r < 2; ++r) {
      const int64_t row = row0() + own_row() + 8 * r;
      const float sum = over_columns(l[r], Add());
      if (row >= p.rows || lane % 4 != 0) continue;
      if (kAttend && slab == 0) {
        p.max[part() * p.rows + row] = m[r];
        p.sum[part() * p.rows + row] = sum;
      }
      if (kNearest && measures()) {
        const int64_t to = (kAttend ? part() : part() * 2 + slab) * p.rows + row;
        p.distance2[to] = distance2[r];
        p.index[to] = index[r];
      }
    }
  }

  const Fused<S>& p;
  float* keep;  // (kFusedRows) what is left of the row's sums so far
  S* weights;   // (kFusedRows, kWeightStride)
  // Of the lane: its part of the recalled features; then its two rows' state.
  float o[4][kShare][4] = {};
  float m[2] = {Identity<float>::max, Identity<float>::max}, l[2] = {};  // l: of its own columns
  float largest = 0;
  float best[2] = {Identity<float>::distance2, Identity<float>::distance2};
  float distance2[2] = {Identity<float>::distance2, Identity<float>::distance2};
  int index[2] = {kNoClass, kNoClass};
};

template <class S, int kWidth, int kSlab, bool kAttend, bool kNearest>
__global__ void __launch_bounds__(kThreads, fused_blocks(kWidth)) fused_forward_kernel(Fused<S> p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  OLTR_DYNAMIC_SHARED(shared);
  FusedBlock<S, kWidth, kSlab, kAttend, kNearest>(p, shared).run();
#else
  __trap();  // no such instructions; nor does a launcher choose this on such a device
#endif
}

}  // namespace oltr::cuda
