// What the fused passes over a bank share. A block has kFusedRows rows and a part of the bank, which
// passes by in tiles through a ring of two stages in shared memory. A stage holds two slabs of kSlab
// rows of a bank. Products of a tile: a warp multiplies 32 rows with one slab, over half the width; the
// two halves meet in shared memory, whereupon a warp has 16 rows of its slab's products in full.
#pragma once

#include <initializer_list>

#include "cuda/queue.h"
#include "cuda/tensor_core.h"

namespace oltr::cuda {

template <class S, int kWidth, int kSlab, int kTile>
class FusedTile {
 protected:
  static constexpr int kOctets = kWidth / 8;         // in a row
  static constexpr int kStage = 2 * kSlab * kWidth;  // elements
  static constexpr int kPartial = 16 * kSlab;        // floats that a warp gives away
  static constexpr int kEights = kSlab / 8;          // of classes, the products' unit
  static constexpr int kStep = 4;  // octets of the width that are multiplied in turn

  __device__ FusedTile(unsigned char* shared, int64_t blocks, int64_t parts, int64_t B,
                       int64_t classes, int64_t width)
      : row_blocks(blocks) {
    x = reinterpret_cast<S*>(shared);
    stages = x + kFusedRows * kWidth;
    partial = reinterpret_cast<float*>(stages + 2 * kStage);
    norms2 = partial + kWarps * kPartial;
    rest = norms2 + 4 * kSlab;
    rows_here = at_most(kFusedRows, B - row0());
    const Range range = part_of(part(), parts, classes, kTile);
    begin = static_cast<int>(range.begin);
    end = static_cast<int>(range.end);
    half_octets = static_cast<int>(div_up(width, 16 * kStep)) * kStep;
  }

  // Of the bank; and the block's first row. Not kept: registers are short.
  __device__ int64_t part() const { return blockIdx.x / row_blocks; }
  __device__ int64_t row0() const { return blockIdx.x % row_blocks * kFusedRows; }

  // Rows of m (B,width) come to stay; then, for every tile, load(stage, first class) asks for its
  // copies and use(stage, first class, classes in it) follows once they are there.
  template <class Load, class Use>
  __device__ __forceinline__ void for_each_tile(const S* m, int64_t B, int64_t width, Load load,
                                                Use use) {
    copy_rows<kFusedRows, kWidth>(x, m, row0(), B, width);
    // A group of copies for each tile, even one beyond the end: the groups are counted.
    const auto fetch = [&](int t, int first) {
      if (first < end) load(stages + t % 2 * kStage, first);
      commit_copies();
    };
    fetch(0, begin);
    fetch(1, begin + kTile);
    for (int t = 0, first = begin; first < end; ++t, first += kTile) {
      wait_copies<1>();
      __syncthreads();  // the tile is there, for every thread
      use(stages + t % 2 * kStage, first, at_most(kTile, end - first));
      __syncthreads();  // nobody reads the stage any more
      fetch(t, first + 2 * kTile);
    }
    wait_copies<0>();
  }

  // This warp's slab of a stage.
  __device__ const S* own_slab(const S* stage) const { return stage + slab * kSlab * kWidth; }
  // Rows, within the block, of what this lane holds of a warp's sixteen: that and that + 8.
  __device__ int own_row() const { return row_half * 32 + half * 16 + lane / 4; }
  // Columns of it, within the slab: its pair among the n-th eight.
  __device__ int own_column(int n) const { return n * 8 + lane % 4 * 2; }
  static __device__ int at(int row, int octet) { return octet_at<kWidth>(row, octet); }

  // Sum over a row's octets, eight lanes a row, in each of them: of term(octet's place).
  template <class Term>
  __device__ __forceinline__ float over_octets(Term term) const {
    float sum = 0;
    OLTR_UNROLL(kWidth > 128 ? 4 : 1)  // there, registers are short
    for (int i = 0; i < kOctets / 8; ++i) sum += term(8 * i + lane % 8);
    for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    return sum;
  }

  // |x| of the lane's two rows; of a warp's sixteen, four at once.
  __device__ __forceinline__ void measure_lengths() {
    OLTR_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      const int row = own_row() - lane / 4 + 4 * i + lane / 8;
      const float squares = over_octets([&](int octet) {
        const auto a = *reinterpret_cast<const Pack<S, 8>*>(x + at(row, octet));
        float sum = 0;
        OLTR_UNROLL(8)
        for (int j = 0; j < 8; ++j) sum += widen(a.v[j]) * widen(a.v[j]);
        return sum;
      });
      const float mine = __shfl_sync(kAllLanes, squares, lane / 4 % 4 * 8);
      if (lane / 16 == i % 2) length[i / 2] = sqrt(mine);
    }
  }

  // Half of y: 32 rows and the slab, over half the width. Squares of the slab on the way.
  template <bool kSquares>
  __device__ __forceinline__ void multiply(const S* rows) {
    float z[2][kEights][4] = {};
    float squares[kEights / 2] = {};
    uint32_t a[2][2][4], b[2][kEights / 2][4];  // of this step and the next
    const auto fetch = [&](int k, int to) {
      const int octet = half * half_octets + k;
      OLTR_UNROLL(2)
      for (int i = 0; i < 2; ++i)
        load_matrices(a[to][i], x + at(row_half * 32 + i * 16 + lane % 16, octet + lane / 16));
      OLTR_UNROLL(2)
      for (int i = 0; i < kEights / 2; ++i)
        load_matrices(b[to][i], rows + at(i * 16 + lane / 16 * 8 + lane % 8, octet + lane / 8 % 2));
    };
    const auto step = [&](int now) {
      OLTR_UNROLL(4)
      for (int n = 0; n < kEights; ++n) {
        const uint32_t* pairs = b[now][n / 2] + n % 2 * 2;
        multiply_add<S>(z[0][n], a[now][0], pairs[0], pairs[1]);
        multiply_add<S>(z[1][n], a[now][1], pairs[0], pairs[1]);
      }
      if (!kSquares) return;
      OLTR_UNROLL(4)
      for (int i = 0; i < kEights; ++i) {  // of two warps with the same slab, each half of it
        const int other = i + kEights;
        const uint32_t pair = row_half == 0 ? b[now][i / 4][i % 4] : b[now][other / 4][other % 4];
        const float low = low_half<S>(pair), high = high_half<S>(pair);
        squares[i / 2] += low * low + high * high;
      }
    };
    if (fused_blocks(kWidth) > 1) {  // two blocks, or at least few registers
      OLTR_UNROLL(1)
      for (int k = 0; k < half_octets; k += 2) {
        fetch(k, 0);
        step(0);
      }
    } else {
      fetch(0, 0);
      OLTR_UNROLL(2)
      for (int k = 0; k < half_octets; k += kStep) {
        fetch(k + 2, 1);
        step(0);
        if (k + kStep < half_octets) fetch(k + kStep, 0);
        step(1);
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
  // After a barrier.
  __device__ __forceinline__ void add_other_half() {
    const float* theirs = partial + (warp ^ 1) * kPartial;
    OLTR_UNROLL(4)
    for (int n = 0; n < kEights; ++n) {
      const auto other = *reinterpret_cast<const Pack<float, 4>*>(theirs + (n * kWarp + lane) * 4);
      OLTR_UNROLL(4)
      for (int e = 0; e < 4; ++e) y[n][e] += other.v[e];
    }
  }
  // |c|^2 of a row of the slab.
  __device__ float squares_of(int column) const {
    const float* norms = norms2 + slab * 2 * kSlab + column;
    return norms[0] + norms[kSlab];
  }

  // Over the four lanes that share a row, in each of them.
  template <class Join>
  static __device__ float over_columns(float v, Join join) {
    v = join(v, __shfl_xor_sync(kAllLanes, v, 1));
    return join(v, __shfl_xor_sync(kAllLanes, v, 2));
  }

  S *x, *stages;
  float *partial, *norms2,
      *rest;  // (warps, kPartial) (2 slabs, 2 halves, kSlab); what else there is
  const int64_t row_blocks;
  int begin, end;  // of its classes: 2^30 at most are fused
  int rows_here;
  int half_octets;  // of the width, in whole steps
  const int lane = lane_index(), warp = warp_index();
  const int half = warp % 2, row_half = warp / 2 % 2, slab = warp / 4;
  float y[kEights][4];  // products of the lane's rows and columns, then what is made of them
  float length[2];
};

// Whether every architecture that this is compiled for has the instructions: a newer device may have to
// run what was meant for an older one.
#if defined(__CUDA_ARCH_LIST__)
constexpr bool all_from(std::initializer_list<int> architectures, int oldest) {
  for (const int a : architectures)
    if (a < oldest) return false;
  return true;
}
constexpr bool kTensorCores = all_from({__CUDA_ARCH_LIST__}, 800);
#else
constexpr bool kTensorCores = true;
#endif

// Whether a pass can be fused: rows are whole octets, and lie where copies may start from.
inline bool can_fuse(Sizes size, std::initializer_list<Matrix> inputs) {
  bool whole = kTensorCores && size.width % 8 == 0;
  for (const Matrix& m : inputs) whole &= reinterpret_cast<uintptr_t>(m.data) % kOctet == 0;
  return whole;
}

// f(Shape<width, slab>()) of the plan.
template <int width, int slab>
struct Shape {
  static constexpr int kWidth = width, kSlab = slab;
};
template <class F>
void with_shape(const FusedPlan& plan, F f) {
  if (plan.width == 128) return f(Shape<128, 32>());
  if (plan.width == 256) return f(Shape<256, 32>());
  if (plan.slab == 32) return f(Shape<512, 32>());
  return f(Shape<512, 16>());
}

}  // namespace oltr::cuda
