// Kernels over the rows of a matrix that several ops share. A header, since templates.
#pragma once

#include <limits>

#include "common/distance.h"
#include "cuda/queue.h"

namespace oltr::cuda {

// What becomes of a row's sum of squares.
template <class T>
struct SquaredNorm {
  __device__ T operator()(T squares) const { return squares; }
};
// scale / |w|, zero for a row of zeros.
template <class T>
struct CosineScale {
  T scale;
  __device__ T operator()(T squares) const {
    return squares == T(0) ? T(0) : scale / static_cast<T>(sqrt(squares));
  }
};
// 1 / (1 + |v|)
template <class T>
struct Squash {
  __device__ T operator()(T squares) const { return 1 / (1 + static_cast<T>(sqrt(squares))); }
};

// out[r] = rule(|m_r|^2), a warp a row.
template <class S, class Rule>
__global__ void row_norms_kernel(const S* m, int64_t rows, int64_t width, Rule rule, Acc<S>* out) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (r >= rows) return;
  const S* row = m + r * width;
  // Whole packs where the row allows it; the order of the sum does not depend on that.
  constexpr int kPack = 16 / sizeof(S);
  const bool whole = width % kPack == 0 && reinterpret_cast<uintptr_t>(row) % 16 == 0;
  Acc<S> squares = 0;
  OLTR_UNROLL(4)
  for (int64_t i = kPack * lane_index(); i < width; i += kPack * kWarp) {
    Pack<S, kPack> pack{};
    if (whole)
      pack = load_pack<kPack>(row + i);
    else
      for (int j = 0; j < kPack && i + j < width; ++j) pack.v[j] = read(row + i + j);
    for (int j = 0; j < kPack; ++j) {
      const Acc<S> v = widen(pack.v[j]);
      squares += v * v;
    }
  }
  squares = warp_reduce(squares, Add());
  if (lane_index() == 0) out[r] = rule(squares);
}
template <class S, class Rule>
void row_norms(Queue& queue, const S* m, int64_t rows, int64_t width, Rule rule, Acc<S>* out) {
  launch(queue, row_norms_kernel<S, Rule>, blocks_of(rows, kWarps), m, rows, width, rule, out);
}

// out[r] = a_r . b_r, a warp a row.
template <class S>
__global__ void row_dots_kernel(const S* a, const S* b, int64_t rows, int64_t width, Acc<S>* out) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (r >= rows) return;
  const Acc<S> sum = warp_sum<Acc<S>>(
      width, [&](int64_t i) { return widen(a[r * width + i]) * widen(b[r * width + i]); });
  if (lane_index() == 0) out[r] = sum;
}

// out[i] = sum over parts of partial[part, i], in their order; the parts are `stride` apart.
template <class Out, class T>
__global__ void add_parts_kernel(const T* partial, int64_t parts, int64_t stride, int64_t n,
                                 Out* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  T sum = 0;
  OLTR_UNROLL(8)
  for (int64_t part = 0; part < parts; ++part) sum += read(partial + part * stride + i);
  out[i] = narrow<Out>(sum);
}

// out = m, narrowed.
template <class S>
__global__ void narrow_kernel(const Acc<S>* m, int64_t n, S* out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) out[i] = narrow<S>(m[i]);
}

// The gradient that reaches the nearest centroids, k their classes and pull_r that of x_r and M_k:
//   grad_x_r += pull_r(x_r, M_k),  grad_memory_k -= the sum of that over the rows that it won.
// One block a row. The first row of a class writes that class, so that no two blocks do. An index that
// is no class makes NaN of its row.
template <class S>
struct Winners {
  const S *x, *memory;       // (B,D) (C,D)
  const int64_t* index;      // (B)
  const Pull<Acc<S>>* pull;  // (B)
  const Acc<S>* grad;        // (B,D) what else reaches x; may be absent
  S* grad_x;                 // (B,D)
  S* grad_memory;            // (C,D), added to; may be absent
  int64_t rows, classes, width;
};

template <class S>
__global__ void winners_kernel(Winners<S> p) {
  using T = Acc<S>;
  const int64_t r = blockIdx.x, D = p.width, k = p.index[r];
  const bool valid = k >= 0 && k < p.classes;
  const S* centroid = p.memory + (valid ? k : 0) * D;
  Pull<T> pull = p.pull[r];
  if (!valid) pull.weight = std::numeric_limits<T>::quiet_NaN();
  for (int64_t d = threadIdx.x; d < D; d += kThreads) {
    T g = p.grad == nullptr ? T(0) : p.grad[r * D + d];
    // A zero weight stands for no gradient at all, whatever the distance is.
    if (pull.weight != T(0)) g += pull(widen(p.x[r * D + d]), widen(centroid[d]));
    p.grad_x[r * D + d] = narrow<S>(g);
  }
  if (p.grad_memory == nullptr || !valid || !first_labelled(p.index, r)) return;
  S* out = p.grad_memory + k * D;
  for (int64_t first = 0; first < D; first += kThreads) {
    const int64_t d = first + threadIdx.x;
    T sum = 0;
    for_each_labelled(p.index, r, p.rows, k, [&](int64_t i) {
      const Pull<T> other = p.pull[i];
      if (d < D && other.weight != T(0)) sum += other(widen(p.x[i * D + d]), widen(centroid[d]));
    });
    if (d < D) out[d] = narrow<S>(widen(out[d]) - sum);
  }
}

}  // namespace oltr::cuda
