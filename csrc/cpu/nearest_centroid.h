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

// grad_x_r += g_r (x_r - memory_k) / d_r with g_r of the distance d_r, and sums[slot] -= the same for
// the winners, which lie scattered over the bank: `slots` numbers them by first appearance so that
// the sums need no (C,D) scratch. `distance` may be absent.
template <class T>
class WinnerGradient {
 public:
  OLTR_INLINE WinnerGradient(Sizes size, const int64_t* index)
      : size_(size), index_(index), slot_(size.batch), sums_(size.batch * size.width) {
    // B is a batch: a quadratic search over it would show, a sort by class does not.
    const int64_t B = size.batch;
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
    for (int64_t i = 0; i < B; ++i) {
      const bool same = i > 0 && index[order[i]] == index[order[i - 1]];
      slot_[order[i]] = same ? slot_[order[i - 1]] : order[i];
    }
  }

  // A task takes columns, so that rows of one class are summed in their order.
  OLTR_INLINE void run(Matrix x, Matrix memory, const Pull<T>* pulls, T* grad_x,
                       const Parallel& parallel) const {
    const int64_t B = size_.batch, D = size_.width;
    const int64_t grain = round_up(clamp(kConverted / (B + 1), 64, D), 16);
    parallel_ranges(parallel, D, grain, [&](int64_t begin, int64_t end) {
      const int64_t n = end - begin;
      const Buffer<T> scratch(n), other(n);
      for (int64_t r = 0; r < B; ++r) fill(sums_.data() + r * D + begin, n, T(0));
      for (int64_t r = 0; r < B; ++r) {
        const Pull<T> pull = pulls[r];
        if (pull.weight == T(0)) continue;
        const T* from = rows(x, r * D + begin, n, 1, scratch.data());
        const T* c = rows(memory, index_[r] * D + begin, n, 1, other.data());
        T *sum = sums_.data() + slot_[r] * D + begin, *to = grad_x + r * D + begin;
        for (int64_t d = 0; d < n; ++d) {
          const T g = pull(from[d], c[d]);
          to[d] += g;
          sum[d] -= g;
        }
      }
    });
  }

  // memory_gradient[k] += sums; every winner's row is read, added in T and written once.
  OLTR_INLINE void add_to(MutableMatrix grad_memory, const Parallel& parallel) const {
    const int64_t D = size_.width;
    parallel_ranges(parallel, size_.batch, kRowGrain, [&](int64_t begin, int64_t end) {
      const Buffer<T> line(D);
      for (int64_t r = begin; r < end; ++r) {
        if (slot_[r] != r) continue;
        convert_in(grad_memory.data, grad_memory.dtype, index_[r] * D, D, line.data());
        add_scaled(line.data(), T(1), sums_.data() + r * D, D);
        convert_out(line.data(), D, grad_memory.data, grad_memory.dtype, index_[r] * D);
      }
    });
  }

 private:
  Sizes size_;
  const int64_t* index_;
  Buffer<int64_t> slot_;
  Buffer<T> sums_;
};

template <class M>
static void nearest_centroid_backward(const NearestCentroidBackward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, D = p.size.width;
  const Converted<T> grad(p.grad_distance, B, parallel);
  const Buffer<T> grad_x(B * D);
  const Buffer<Pull<T>> pulls(B);
  parallel_ranges(parallel, B, kRowGrain, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(D), other(D);
    for (int64_t r = begin; r < end; ++r) {
      const T* x = rows(p.x, r, 1, D, scratch.data());
      const Gap<T> gap = gap_between(x, rows(p.memory, p.index[r], 1, D, other.data()), D);
      pulls[r] = pull_of(grad[r], gap.length, gap.scale);
    }
    fill(grad_x.data() + begin * D, (end - begin) * D, T(0));
  });
  const WinnerGradient<T> winners(p.size, p.index);
  winners.run(p.x, p.memory, pulls.data(), grad_x.data(), parallel);
  convert_all(grad_x.data(), B * D, p.grad_x, parallel);
  if (p.grad_memory.data == nullptr) return;
  const int64_t row_bytes = D * dtype_bytes(p.dtype);
  parallel_ranges(parallel, p.size.classes, int64_t{4096}, [&](int64_t begin, int64_t end) {
    __builtin_memset(static_cast<char*>(p.grad_memory.data) + begin * row_bytes, 0,
                     static_cast<size_t>((end - begin) * row_bytes));
  });
  winners.add_to(p.grad_memory, parallel);
}

}  // namespace OLTR_ISA
}  // namespace oltr
