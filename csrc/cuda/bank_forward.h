// A forward pass over the bank. By chunks: one chunk of classes meets every row of the batch, and what
// follows its products is here. A block has one row. It reads the row's logits (still in L2), updates the row's state by the merge
// rule (common/merge.h), and leaves exp(logit - max) for the product with the memory.
#pragma once

#include <limits>

#include "cuda/fused_forward.h"
#include "cuda/rows.h"

namespace oltr::cuda {

// Columns [0, count) of a chunk are the classes from `first` on; rows of logits are `stride` apart.
struct Chunk {
  int64_t first, count, stride;
  bool opens;  // the first chunk: there is no state yet
};

// Softmax: (m, l, o) of the row state.
template <class S>
struct Attention {
  const Acc<S>* logits;         // (B, stride) x keys'
  const S* bias;                // (count)
  S* weights;                   // (B, stride) exp(logit - m)
  Acc<S>*max, *sum, *recalled;  // (B) (B) (B,D)
  int64_t width;
};

// Minimum: (d2, k) of the row state. The product |c|^2/2 - x.c only *selects*: every class within
// its rounding error of the best is measured as sum (x-c)^2, so the winner is the true one.
template <class S>
struct Nearest {
  const Acc<S>* products;   // (B, stride) x memory'
  const Acc<S>* norms2;     // (count)
  const S *x, *memory;      // (B,D), (count,D)
  Acc<S>*length, *largest;  // (B) |x|; the largest |c|^2 so far
  Acc<S>*best, *distance2;  // (B) smallest score so far; smallest true square
  int64_t* index;           // (B)
  int64_t width;
  Acc<S> unit;  // of rounding, which may set two scores apart by unit (|x| |c| + |c|^2 / 2)
};

// How far rounding can set two scores apart: the sums' own error, a bit an addition, for tensor cores
// cut, and that of operands that the product rounds: to bfloat16 by 2^-8 a product, up or down; to
// TF32, which may cut, by 2^-9 towards zero. Nothing of it averages out where coordinates are alike,
// for then all additions round the same way, nor where one is far larger than the others.
template <class S>
Acc<S> score_error(int64_t width, Precision precision) {
  using T = Acc<S>;
  T error = 2 * std::numeric_limits<T>::epsilon() * static_cast<T>(32 + width);
  if (DtypeOf<S>::value == Dtype::kFloat32 && precision == Precision::kHigh) error += T(1.0 / 512);
  if (DtypeOf<S>::value == Dtype::kFloat32 && precision == Precision::kMedium)
    error += T(1.0 / 120);
  return error;
}

template <class S>
__device__ void attend(const Attention<S>& p, const Chunk& chunk, unsigned char* shared) {
  using T = Acc<S>;
  const int64_t row = blockIdx.x;
  const T* logits = p.logits + row * chunk.stride;
  S* weights = p.weights + row * chunk.stride;
  const auto load = [&](int64_t c, int left) {
    Pack<T, kColumns> z = load_pack<kColumns>(logits + c, left);
    for (int j = 0; j < kColumns; ++j)
      if (j < left) z.v[j] += widen(read(p.bias + c + j));
    return z;
  };
  T m = chunk.opens ? Identity<T>::max : p.max[row];
  T l = chunk.opens ? Identity<T>::sum : p.sum[row];
  T high = Identity<T>::max, sum = 0;
  for_each_pack(chunk.count, [&](int64_t c, int left) {
    const Pack<T, kColumns> z = load(c, left);
    for (int j = 0; j < kColumns; ++j)
      if (j < left) high = Largest()(high, z.v[j]);
  });
  high = Largest()(m, block_reduce(high, Largest(), shared));
  for_each_pack(chunk.count, [&](int64_t c, int left) {
    const Pack<T, kColumns> z = load(c, left);
    Pack<S, kColumns> out;
    for (int j = 0; j < kColumns; ++j) {
      const T weight = j < left ? static_cast<T>(exp(z.v[j] - high)) : T(0);
      out.v[j] = narrow<S>(weight);
      sum += weight;
    }
    store_pack(weights + c, out);  // rows are padded to whole packs
  });
  sum = block_reduce(sum, Add(), shared);
  T keep, take;
  merge_softmax(m, l, high, sum, keep, take, [](T a) { return static_cast<T>(exp(a)); });
  if (threadIdx.x == 0) {
    p.max[row] = m;
    p.sum[row] = l;
  }
  if (chunk.opens || keep == T(1)) return;
  T* recalled = p.recalled + row * p.width;
  for (int64_t d = threadIdx.x; d < p.width; d += kThreads) recalled[d] *= keep;
}

template <class S>
__device__ void find_nearest(const Nearest<S>& p, const Chunk& chunk, unsigned char* shared) {
  using T = Acc<S>;
  const int64_t row = blockIdx.x;
  const S* x = p.x + row * p.width;
  const T* products = p.products + row * chunk.stride;
  T length;
  if (chunk.opens) {
    length = sqrt(block_sum<T>(p.width, shared, [&](int64_t i) {
      const T v = widen(x[i]);
      return v * v;
    }));
    if (threadIdx.x == 0) p.length[row] = length;
  } else {
    length = p.length[row];
  }
  // A lane's columns are the same in both passes: it knows whether one of them can be near.
  T low = Identity<T>::distance2, largest = chunk.opens ? T(0) : p.largest[row];
  bool undefined = false;
  for_each_pack(chunk.count, [&](int64_t c, int left) {
    const Pack<T, kColumns> dots = load_pack<kColumns>(products + c, left);
    const Pack<T, kColumns> squares = load_pack<kColumns>(p.norms2 + c, left);
    for (int j = 0; j < kColumns; ++j) {
      if (j >= left) continue;
      const T score = squares.v[j] / 2 - dots.v[j];
      low = Smallest()(low, score);
      largest = Largest()(largest, squares.v[j]);
      undefined |= score != score;
    }
  });
  const T before = chunk.opens ? Identity<T>::distance2 : p.best[row];
  const T best = Smallest()(before, block_reduce(low, Smallest(), shared));
  // Of all classes so far: the best of them may have lost that much of its score to rounding.
  largest = block_reduce(largest, Largest(), shared);
  const T limit = best + p.unit * (length * static_cast<T>(sqrt(largest)) + largest / 2);

  T distance2 = Identity<T>::distance2;
  int64_t index = Identity<T>::index;
  const auto measure = [&](int64_t c) {
    const S* centroid = p.memory + c * p.width;
    const T d2 = warp_sum<T>(p.width, [&](int64_t i) {
      const T gap = widen(x[i]) - widen(centroid[i]);
      return gap * gap;
    });
    if (!closer(d2, chunk.first + c, distance2, index)) return;
    distance2 = d2;
    index = chunk.first + c;
  };
  // NaN is a candidate too, and all are where the limit is NaN: closer() has a rule for it.
  const bool some = undefined || !(low > limit);
  if (__ballot_sync(kAllLanes, some) != 0) {
    constexpr int64_t kSpan = kColumns * kWarp;
    for (int64_t c0 = warp_index() * kSpan; c0 < chunk.count; c0 += kColumns * kThreads) {
      for (int j = 0; j < kColumns; ++j) {
        const int64_t mine = c0 + kColumns * lane_index() + j;
        const bool near =
            some && mine < chunk.count && !(p.norms2[mine] / 2 - products[mine] > limit);
        unsigned found = __ballot_sync(kAllLanes, near);
        for (; found != 0; found &= found - 1)
          measure(c0 + kColumns * (__ffs(static_cast<int>(found)) - 1) + j);
      }
    }
  }
  // The warps' winners, then the row's.
  T* distances = reinterpret_cast<T*>(shared);
  int64_t* indices = reinterpret_cast<int64_t*>(shared + kWarps * sizeof(double));
  __syncthreads();
  if (lane_index() == 0) {
    distances[warp_index()] = distance2;
    indices[warp_index()] = index;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  distance2 = chunk.opens ? Identity<T>::distance2 : p.distance2[row];
  index = chunk.opens ? Identity<T>::index : p.index[row];
  for (int w = 0; w < kWarps; ++w) {
    if (!closer(distances[w], indices[w], distance2, index)) continue;
    distance2 = distances[w];
    index = indices[w];
  }
  p.largest[row] = largest;
  p.best[row] = best;
  p.distance2[row] = distance2;
  p.index[row] = index;
}

template <class S, bool kAttend, bool kNearest>
__global__ void bank_forward_kernel(Attention<S> attention, Nearest<S> nearest, Chunk chunk) {
  OLTR_DYNAMIC_SHARED(shared);
  if (kAttend) attend(attention, chunk, shared);
  if (kNearest) find_nearest(nearest, chunk, shared);
}

// A forward pass over the bank: memory attention, nearest centroid, or both. Fused where the rows are
// halves that fit (cuda/fused_forward.h), else chunk by chunk.
template <class S, bool kAttend, bool kNearest>
struct BankForward {
  using T = Acc<S>;
  Sizes size;
  Precision precision;
  const S *x, *memory;
  const S *keys = nullptr, *bias = nullptr;
  FusedPlan plan{};
  // State and outcome, cut from the workspace; of every part where the pass is fused, the outcome in
  // the first.
  T *max, *sum, *recalled, *distance2;
  // Fused: the parts' nearest classes.
  int64_t* found;
  // By chunks.
  int64_t chunk = 0;  // classes
  T *logits, *products, *norms2, *length, *largest, *best;
  S* weights;

  // `fusible`: can_fuse() of all inputs.
  BankForward(Carver& carve, Sizes sizes, bool fusible, Device device) : size(sizes) {
    const int64_t B = size.batch, D = size.width;
    if (sizeof(S) == 2 && fusible) plan = fused_plan(size, kAttend, device);
    const bool fused = plan.width > 0;
    const int64_t parts = fused ? plan.parts : 1, states = fused ? plan.states : 1;
    max = carve.array<T>(kAttend ? parts * B : 0);
    sum = carve.array<T>(kAttend ? parts * B : 0);
    recalled = carve.array<T>(kAttend ? parts * B * D : 0);
    distance2 = carve.array<T>(kNearest ? states * B : 0);
    found = carve.array<int64_t>(kNearest && states > 1 ? states * B : 0);
    if (!fused)
      chunk = forward_chunk(size, {sizeof(S), sizeof(T)}, kAttend, kNearest, device.chunk_bytes);
    logits = carve.array<T>(kAttend ? B * chunk : 0);
    weights = carve.array<S>(kAttend ? B * chunk : 0);
    products = carve.array<T>(kNearest ? B * chunk : 0);
    norms2 = carve.array<T>(kNearest ? chunk : 0);
    length = carve.array<T>(kNearest && !fused ? B : 0);
    largest = carve.array<T>(kNearest && !fused ? B : 0);
    best = carve.array<T>(kNearest && !fused ? B : 0);
  }

  // `index` is where the nearest classes go, if they are wanted.
  void run(Queue& queue, int64_t* index) const {
    if (size.batch == 0) return;
    if constexpr (sizeof(S) == 2)
      if (plan.width > 0) return run_fused(queue, index);
    run_chunks(queue, index);
  }

 private:
  void run_fused(Queue& queue, int64_t* index) const {
    const Fused<S> all{x,
                       keys,
                       bias,
                       memory,
                       size.batch,
                       size.classes,
                       size.width,
                       plan.row_blocks,
                       plan.parts,
                       max,
                       sum,
                       recalled,
                       distance2,
                       plan.states > 1 ? found : index,
                       score_error<S>(size.width, precision)};
    fused_forward<S, kAttend, kNearest>(queue, plan, all, index);
  }

  void run_chunks(Queue& queue, int64_t* index) const {
    const int64_t B = size.batch, C = size.classes, D = size.width;
    for (int64_t c0 = 0; c0 < C; c0 += chunk) {
      const int64_t n = C - c0 < chunk ? C - c0 : chunk;
      const S* centroids = memory + c0 * D;
      Attention<S> attention{};
      Nearest<S> found{};
      if (kAttend) {
        product<S>(queue, precision, B, n, D, plain(x, D), transposed(keys + c0 * D, D), logits,
                   chunk);
        attention = {logits, bias + c0, weights, max, sum, recalled, D};
      }
      if (kNearest) {
        row_norms(queue, centroids, n, D, SquaredNorm<T>(), norms2);
        product<S>(queue, precision, B, n, D, plain(x, D), transposed(centroids, D), products,
                   chunk);
        found = {products,
                 norms2,
                 x,
                 centroids,
                 length,
                 largest,
                 best,
                 distance2,
                 index,
                 D,
                 score_error<S>(D, precision)};
      }
      launch(queue, bank_forward_kernel<S, kAttend, kNearest>, blocks_of(B), attention, found,
             Chunk{c0, n, chunk, c0 == 0});
      if (kAttend)
        product<S>(queue, precision, B, D, n, plain(weights, chunk), plain(centroids, D), recalled,
                   D, c0 > 0);
    }
  }
};

}  // namespace oltr::cuda
