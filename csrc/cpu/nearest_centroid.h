// nearest_centroid: d_r = min_c |x_r - memory_c|, k_r = its class.
// Backward: grad_x_r = g_r (x_r - memory_k) / d_r, grad_memory_k -= the same; zero where d_r = 0.
#pragma once

#include "cpu/bank_forward.h"

namespace oltr {
namespace OLTR_ISA {

template <class M>
static void nearest_centroid_forward(const NearestCentroidForward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch;
  const Buffer<T> distance(B);
  BankForward<M> bank;
  bank.size = p.size;
  bank.x = p.x;
  bank.memory = p.memory;
  bank.nearest = true;
  bank.distance = distance.data();
  bank.index = p.index;
  bank_forward(bank, parallel);
  convert_out(distance.data(), B, p.distance.data, p.distance.dtype, 0);
}

// line_d += pull of (x_rd, memory_kd), with k the class nearest to row r; scratch holds 2 D numbers.
template <class T>
OLTR_INLINE void pull_to(const Pull<T>& pull, Matrix x, int64_t r, Matrix memory, int64_t k,
                         int64_t D, T* line, T* scratch) {
  if (pull.weight == T(0)) return;
  const T* from = rows(x, r, 1, D, scratch);
  const T* c = rows(memory, k, 1, D, scratch + D);
  for (int64_t d = 0; d < D; ++d) line[d] += pull(from[d], c[d]);
}

// grad_memory_k -= sum of the pulls of the rows r nearest to k, in their order. These classes lie scattered over the bank: each is read, added to in T and written once.
template <class T>
static void push_winners(Sizes size, Matrix x, Matrix memory, const int64_t* index,
                         const Pull<T>* pulls, MutableMatrix grad_memory,
                         const Parallel& parallel) {
  // B is a batch: a quadratic search over it would show, a sort by class does not.
  const int64_t B = size.batch, D = size.width;
  const Buffer<int64_t> order(B), scratch(B);
  for (int64_t r = 0; r < B; ++r) order[r] = r;
  for (int64_t run = 1; run < B; run *= 2) {  // stable merge sort, so sums keep the row order
    for (int64_t lo = 0; lo < B; lo += 2 * run) {
      const int64_t mid = lo + run < B ? lo + run : B, hi = mid + run < B ? mid + run : B;
      for (int64_t i = lo, j = mid, k = lo; k < hi; ++k) {
        const bool left = i < mid && (j >= hi || index[order[i]] <= index[order[j]]);
        scratch[k] = left ? order[i++] : order[j++];
      }
    }
    for (int64_t i = 0; i < B; ++i) order[i] = scratch[i];
  }
  parallel_ranges(parallel, B, kRowGrain, [&](int64_t begin, int64_t end) {
    const Buffer<T> pair(2 * D), sum(D), line(D);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t k = index[order[i]];
      if (i > 0 && index[order[i - 1]] == k) continue;  // another's
      fill(sum.data(), D, T(0));
      for (int64_t j = i; j < B && index[order[j]] == k; ++j)
        pull_to(pulls[order[j]], x, order[j], memory, k, D, sum.data(), pair.data());
      convert_in(grad_memory.data, grad_memory.dtype, k * D, D, line.data());
      add_scaled(line.data(), T(-1), sum.data(), D);
      convert_out(line.data(), D, grad_memory.data, grad_memory.dtype, k * D);
    }
  });
}

template <class M>
static void nearest_centroid_backward(const NearestCentroidBackward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, D = p.size.width;
  const Converted<T> grad(p.grad_distance, B, parallel);
  const Buffer<Pull<T>> pulls(B);
  parallel_ranges(parallel, B, kRowGrain, [&](int64_t begin, int64_t end) {
    const Buffer<T> pair(2 * D), line(D);
    for (int64_t r = begin; r < end; ++r) {
      const T* x = rows(p.x, r, 1, D, pair.data());
      const Gap<T> gap = gap_between(x, rows(p.memory, p.index[r], 1, D, pair.data() + D), D);
      pulls[r] = pull_of(grad[r], gap.length, gap.scale);
      fill(line.data(), D, T(0));
      pull_to(pulls[r], p.x, r, p.memory, p.index[r], D, line.data(), pair.data());
      convert_out(line.data(), D, p.grad_x.data, p.grad_x.dtype, r * D);
    }
  });
  if (p.grad_memory.data == nullptr) return;
  const int64_t row_bytes = D * dtype_bytes(p.dtype);
  parallel_ranges(parallel, p.size.classes, int64_t{4096}, [&](int64_t begin, int64_t end) {
    __builtin_memset(static_cast<char*>(p.grad_memory.data) + begin * row_bytes, 0,
                     static_cast<size_t>((end - begin) * row_bytes));
  });
  push_winners(p.size, p.x, p.memory, p.index, pulls.data(), p.grad_memory, parallel);
}

}  // namespace OLTR_ISA
}  // namespace oltr
