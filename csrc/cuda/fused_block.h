// A forward pass over the bank in one kernel, for half types: no logit leaves the chip.
//
// A block has kFusedRows rows and a part of the bank, which passes by in tiles through a ring of two
// stages in shared memory. A stage holds two slabs of kSlab rows: of the keys and of the memory, of the
// same classes; where only distances are asked for, of the memory, of twice as many classes. Per tile:
//
//   products   a warp multiplies 32 rows with one slab, over half the width; the two halves meet in
//              shared memory, whereupon a warp has 16 rows of a slab's logits, or products, in full
//   epilogue   warps of the keys: max, weights, sum; warps of the memory: candidates, measured
//   recall     every warp: weights times the tile's memory, for its share of the width
//
// Each part leaves a row state (m, l, o, d2, k), which fused_forward.h joins.
#pragma once

#include <limits>

#include "cuda/tensor_core.h"

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
class FusedBlock {
  static constexpr int kTile = kAttend ? kSlab : 2 * kSlab;  // classes
  static constexpr int kOctets = kWidth / 8;                 // in a row
  static constexpr int kStage = 2 * kSlab * kWidth;          // elements
  static constexpr int kPartial = 16 * kSlab;                // floats that a warp gives away
  static constexpr int kEights = kSlab / 8;                  // of classes, the products' unit
  // Of a row's weights, so that eight rows miss one another's banks.
  static constexpr int kWeightStride = kSlab + 8;
  static constexpr int kShare = kOctets / kWarps;  // octets of the width that a warp recalls

  static __device__ int at(int row, int octet) { return octet_at<kWidth>(row, octet); }

 public:
  __device__ FusedBlock(const Fused<S>& params, unsigned char* shared) : p(params) {
    x = reinterpret_cast<S*>(shared);
    stages = x + kFusedRows * kWidth;
    weights = stages + 2 * kStage;
    partial = reinterpret_cast<float*>(weights + kFusedRows * kWeightStride);
    norms2 = partial + kWarps * kPartial;
    keep = norms2 + 4 * kSlab;
    part = blockIdx.x / p.row_blocks;
    row0 = blockIdx.x % p.row_blocks * kFusedRows;
    const Range range = part_of(part, p.parts, p.classes, kTile);
    begin = range.begin;
    end = range.end;
  }

  __device__ __forceinline__ void run() {
    copy_rows<kFusedRows, kWidth>(x, p.x, row0, p.rows, p.width);
    load_tile(0);
    load_tile(1);
    const int64_t tiles = div_up(end - begin, kTile);
    for (int64_t t = 0; t < tiles; ++t) {
      wait_copies<1>();
      __syncthreads();  // the tile is there, for every thread
      if (kNearest && t == 0 && measures()) measure_lengths();
      const S* stage = stages + t % 2 * kStage;
      const S* rows = stage + slab * kSlab * kWidth;  // of this warp's slab
      const int64_t first = begin + t * kTile;
      const int count = at_most(kTile, end - first);
      // Asked for early, a class a lane: it comes from far away.
      float bias = 0;
      if (kAttend && slab == 0 && lane < count) bias = widen(read(p.bias + first + lane));
      if (kNearest && measures()) {
        multiply<true>(rows);
      } else if (slab == 0) {
        multiply<false>(rows);
      }
      __syncthreads();  // the other half of the width is there
      if (kNearest || slab == 0) add_other_half();
      if (kAttend && slab == 0) attend(bias, count);
      if (kNearest && measures()) {
        const int before = kAttend ? 0 : slab * kSlab;
        find_nearest(rows, first + before, count - before);
      }
      if (kAttend) {
        __syncthreads();  // the weights are there
        recall(stage + kSlab * kWidth);
      }
      __syncthreads();  // nobody reads the stage any more
      load_tile(t + 2);
    }
    wait_copies<0>();
    if (kAttend) store_recalled();
    store_state();
  }

 private:
  __device__ bool measures() const { return !kAttend || slab == 1; }
  // Rows, within the block, of what this lane holds of a warp's sixteen: that and that + 8.
  __device__ int own_row() const { return row_half * 32 + half * 16 + lane / 4; }
  // Columns of it, within the slab: its pair among the n-th eight.
  __device__ int own_column(int n) const { return n * 8 + lane % 4 * 2; }

  // A group of copies for each tile, even one beyond the end: the groups are counted.
  __device__ __forceinline__ void load_tile(int64_t t) {
    const int64_t first = begin + t * kTile;
    S* stage = stages + t % 2 * kStage;
    if (first < end) {
      if (kAttend) {
        copy_rows<kSlab, kWidth>(stage, p.keys, first, end, p.width);
        copy_rows<kSlab, kWidth>(stage + kSlab * kWidth, p.memory, first, end, p.width);
      } else {
        copy_rows<2 * kSlab, kWidth>(stage, p.memory, first, end, p.width);
      }
    }
    commit_copies();
  }

  // |x| of the lane's two rows.
  __device__ __forceinline__ void measure_lengths() {
    OLTR_UNROLL(2)
    for (int r = 0; r < 2; ++r) {
      for (int g = 0; g < 8; ++g) {
        const S* row = x + (own_row() - lane / 4 + 8 * r + g) * kWidth;
        const float squares = warp_sum<float>(kWidth, [&](int64_t i) {
          const float v = widen(row[i]);
          return v * v;
        });
        if (g == lane / 4) length[r] = sqrt(squares);
      }
    }
  }

  // products (32 rows, the slab) over half the width; squares of the slab on the way.
  template <bool kSquares>
  __device__ __forceinline__ void multiply(const S* rows) {
    float z[2][kEights][4] = {};
    float squares[kEights / 2] = {};
    uint32_t a[2][2][4], b[2][kEights / 2][4];  // of this step and the next
    const auto fetch = [&](int k, int to) {
      const int octet = half * (kOctets / 2) + k;
      OLTR_UNROLL(2)
      for (int i = 0; i < 2; ++i)
        load_matrices(a[to][i], x + at(row_half * 32 + i * 16 + lane % 16, octet + lane / 16));
      OLTR_UNROLL(2)
      for (int i = 0; i < kEights / 2; ++i)
        load_matrices(b[to][i], rows + at(i * 16 + lane / 16 * 8 + lane % 8, octet + lane / 8 % 2));
    };
    fetch(0, 0);
    OLTR_UNROLL(4)
    for (int k = 0; k < kOctets / 2; k += 2) {
      const int now = k / 2 % 2;
      if (k + 2 < kOctets / 2) fetch(k + 2, 1 - now);
      OLTR_UNROLL(4)
      for (int n = 0; n < kEights; ++n) {
        const uint32_t* pairs = b[now][n / 2] + n % 2 * 2;
        multiply_add<S>(z[0][n], a[now][0], pairs[0], pairs[1]);
        multiply_add<S>(z[1][n], a[now][1], pairs[0], pairs[1]);
      }
      if (!kSquares) continue;
      OLTR_UNROLL(4)
      for (int i = 0; i < kEights; ++i) {  // of two warps with the same slab, each half of it
        const int other = i + kEights;
        const uint32_t pair = row_half == 0 ? b[now][i / 4][i % 4] : b[now][other / 4][other % 4];
        const float low = low_half<S>(pair), high = high_half<S>(pair);
        squares[i / 2] += low * low + high * high;
      }
    }
    OLTR_UNROLL(4)
    for (int n = 0; n < kEights; ++n) {
      Pack<float, 4> given;
      OLTR_UNROLL(4)
      for (int e = 0; e < 4; ++e) {
        given.v[e] = half == 0 ? z[1][n][e] : z[0][n][e];
        y[n][e] = half == 0 ? z[0][n][e] : z[1][n][e];
      }
      store_pack(partial + warp * kPartial + (n * kWarp + lane) * 4, given);
    }
    if (!kSquares) return;
    OLTR_UNROLL(2)
    for (int n = 0; n < kEights / 2; ++n) {
      const float sum = over_columns(squares[n], Add());
      const int column = (row_half * kEights / 2 + n) * 8 + lane / 4;
      if (lane % 4 == 0) norms2[(slab * 2 + half) * kSlab + column] = sum;
    }
  }
  __device__ __forceinline__ void add_other_half() {
    const float* theirs = partial + (warp ^ 1) * kPartial;
    OLTR_UNROLL(4)
    for (int n = 0; n < kEights; ++n) {
      const auto other = *reinterpret_cast<const Pack<float, 4>*>(theirs + (n * kWarp + lane) * 4);
      OLTR_UNROLL(4)
      for (int e = 0; e < 4; ++e) y[n][e] += other.v[e];
    }
  }

  // Over the four lanes that share a row, in each of them.
  template <class Join>
  static __device__ float over_columns(float v, Join join) {
    v = join(v, __shfl_xor_sync(kAllLanes, v, 1));
    return join(v, __shfl_xor_sync(kAllLanes, v, 2));
  }

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
        z += offset;
        if (column < count) high[r] = Largest()(high[r], z);
      }
    }
    float sum[2] = {};
    OLTR_UNROLL(2)
    for (int r = 0; r < 2; ++r) {
      high[r] = over_columns(high[r], Largest());
      OLTR_UNROLL(4)
      for (int n = 0; n < kEights; ++n) {
        Pack<S, 2> pair;
        OLTR_UNROLL(2)
        for (int e = 0; e < 2; ++e) {
          const bool there = own_column(n) + e < count;
          const float weight = there ? exp(y[n][2 * r + e] - high[r]) : 0.0f;
          pair.v[e] = narrow<S>(weight);
          sum[r] += weight;
        }
        store_pack(weights + (own_row() + 8 * r) * kWeightStride + own_column(n), pair);
      }
      float kept, take;
      merge_softmax(m[r], l[r], high[r], sum[r], kept, take, [](float v) { return exp(v); });
      if (lane % 4 == 0) keep[own_row() + 8 * r] = kept;
    }
  }

  // As find_nearest in bank_forward.h, of what lies in shared memory.
  __device__ __forceinline__ void find_nearest(const S* rows, int64_t first, int count) {
    float low[2] = {Identity<float>::distance2, Identity<float>::distance2};
    OLTR_UNROLL(8)
    for (int i = 0; i < 2 * kEights; ++i) {
      const int column = own_column(i / 2) + i % 2;
      const float* norms = norms2 + slab * 2 * kSlab + column;
      const float squares = norms[0] + norms[kSlab];
      if (column < count) largest = Largest()(largest, squares);
      OLTR_UNROLL(2)
      for (int r = 0; r < 2; ++r) {
        float& score = y[i / 2][2 * r + i % 2];
        score = squares / 2 - score;
        if (column < count) low[r] = Smallest()(low[r], score);
      }
    }
    largest = over_columns(largest, Largest());
    // One copy of this for each r: arrays that are indexed by a variable do not stay in registers.
    OLTR_UNROLL(2)
    for (int r = 0; r < 2; ++r) {
      best[r] = Smallest()(best[r], over_columns(low[r], Smallest()));
      const float limit = best[r] + p.unit * (length[r] * sqrt(largest) + largest / 2);
      const bool row = row0 + own_row() + 8 * r < p.rows;
      unsigned near = 0;  // bit i: the lane's i-th element of this row is a candidate
      OLTR_UNROLL(8)
      for (int i = 0; i < 2 * kEights; ++i) {
        const bool there = row && own_column(i / 2) + i % 2 < count;
        if (there && !(y[i / 2][2 * r + i % 2] > limit)) near |= 1u << i;
      }
      if (__ballot_sync(kAllLanes, near != 0) == 0) continue;
      for (int i = 0; i < 2 * kEights; ++i) {
        unsigned found = __ballot_sync(kAllLanes, (near >> i & 1) != 0);
        for (; found != 0; found &= found - 1) {
          const int from = __ffs(static_cast<int>(found)) - 1;
          const int column = i / 2 * 8 + from % 4 * 2 + i % 2;
          const float d2 = measure(own_row() + 8 * r - lane / 4 + from / 4, rows, column);
          if (lane / 4 != from / 4 || !closer(d2, first + column, distance2[r], index[r])) continue;
          distance2[r] = d2;
          index[r] = first + column;
        }
      }
    }
  }
  // Squared distance of a row and a class of the slab, in every lane.
  __device__ __forceinline__ float measure(int row, const S* rows, int column) const {
    float sum = 0;
    for (int octet = lane; octet < kOctets; octet += kWarp) {
      const auto a = *reinterpret_cast<const Pack<S, 8>*>(x + at(row, octet));
      const auto b = *reinterpret_cast<const Pack<S, 8>*>(rows + at(column, octet));
      OLTR_UNROLL(8)
      for (int j = 0; j < 8; ++j) {
        const float gap = widen(a.v[j]) - widen(b.v[j]);
        sum += gap * gap;
      }
    }
    return warp_reduce(sum, Add());
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
        load_matrices_transposed(b, memory + at(k + lane % 16, warp * kShare + j + lane / 16));
        OLTR_UNROLL(8)
        for (int i = 0; i < 8; ++i)
          multiply_add<S>(o[i / 2][j + i % 2], a[i / 2], b[i % 2 * 2], b[i % 2 * 2 + 1]);
      }
    }
  }

  __device__ __forceinline__ void store_recalled() {
    OLTR_UNROLL(8)
    for (int i = 0; i < 8; ++i) {
      const int64_t row = row0 + i * 8 + lane / 4;
      if (row >= p.rows) continue;
      float* to = p.recalled + (part * p.rows + row) * p.width;
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
      const int64_t row = row0 + own_row() + 8 * r;
      const float sum = over_columns(l[r], Add());
      if (row >= p.rows || lane % 4 != 0) continue;
      if (kAttend && slab == 0) {
        p.max[part * p.rows + row] = m[r];
        p.sum[part * p.rows + row] = sum;
      }
      if (kNearest && measures()) {
        const int64_t to = (kAttend ? part : part * 2 + slab) * p.rows + row;
        p.distance2[to] = distance2[r];
        p.index[to] = index[r];
      }
    }
  }

  const Fused<S>& p;
  S *x, *stages, *weights;
  float *partial, *norms2, *keep;  // (warps,512) (2 slabs, 2 halves, kSlab) (kFusedRows)
  int64_t part, row0, begin, end;
  const int lane = lane_index(), warp = warp_index();
  const int half = warp % 2, row_half = warp / 2 % 2, slab = warp / 4;
  // Of the lane: its part of the recalled features, and of logits or scores; then its two rows' state.
  float o[4][kShare][4] = {};
  float y[kEights][4];
  float m[2] = {Identity<float>::max, Identity<float>::max}, l[2] = {};  // l: of its own columns
  float length[2], largest = 0;
  float best[2] = {Identity<float>::distance2, Identity<float>::distance2};
  float distance2[2] = {Identity<float>::distance2, Identity<float>::distance2};
  int64_t index[2] = {Identity<float>::index, Identity<float>::index};
};

template <class S, int kWidth, int kSlab, bool kAttend, bool kNearest>
__global__ void __launch_bounds__(kThreads, 1) fused_forward_kernel(Fused<S> p) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  OLTR_DYNAMIC_SHARED(shared);
  FusedBlock<S, kWidth, kSlab, kAttend, kNearest>(p, shared).run();
#else
  __trap();  // no such instructions; nor does a launcher choose this on such a device
#endif
}

}  // namespace oltr::cuda
