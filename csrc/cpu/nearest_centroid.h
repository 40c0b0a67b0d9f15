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

  OLTR_INLINE void run(const T* x, Matrix memory, const T* grad, const T* distance,
                       T* grad_x) const {
    const int64_t D = size_.width;
    const Buffer<T> scratch(D);
    fill(sums_.data(), size_.batch * D, T(0));
    for (int64_t r = 0; r < size_.batch; ++r) {
      if (grad[r] == T(0)) continue;
      const T* c = rows(memory, index_[r], 1, D, scratch.data());
      const bool known = distance != nullptr && in_range(distance[r] * distance[r]);
      const Gap<T> gap = known ? Gap<T>{distance[r], 1} : gap_between(x + r * D, c, D);
      const Pull<T> pull = pull_of(grad[r], gap.length, gap.scale);
      if (pull.weight == T(0)) continue;
      T* sum = sums_.data() + slot_[r] * D;
      for (int64_t d = 0; d < D; ++d) {
        const T g = pull(x[r * D + d], c[d]);
        grad_x[r * D + d] += g;
        sum[d] -= g;
      }
    }
  }

  // memory_gradient[k] += sums; every winner's row is read, added in T and written once.
  OLTR_INLINE void add_to(MutableMatrix grad_memory) const {
    const int64_t D = size_.width;
    const Buffer<T> line(D);
    for (int64_t r = 0; r < size_.batch; ++r) {
      if (slot_[r] != r) continue;
      convert_in(grad_memory.data, grad_memory.dtype, index_[r] * D, D, line.data());
      add_scaled(line.data(), T(1), sums_.data() + r * D, D);
      convert_out(line.data(), D, grad_memory.data, grad_memory.dtype, index_[r] * D);
    }
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
  const Converted<T> x(p.x, B * D), grad(p.grad_distance, B);
  const Buffer<T> grad_x(B * D);
  fill(grad_x.data(), B * D, T(0));
  const WinnerGradient<T> winners(p.size, p.index);
  winners.run(x.data(), p.memory, grad.data(), nullptr, grad_x.data());
  convert_out(grad_x.data(), B * D, p.grad_x.data, p.grad_x.dtype, 0);
  if (p.grad_memory.data == nullptr) return;
  const int64_t row_bytes = D * dtype_bytes(p.dtype);
  parallel_ranges(parallel, p.size.classes, int64_t{4096}, [&](int64_t begin, int64_t end) {
    __builtin_memset(static_cast<char*>(p.grad_memory.data) + begin * row_bytes, 0,
                     static_cast<size_t>((end - begin) * row_bytes));
  });
  winners.add_to(p.grad_memory);
}

}  // namespace OLTR_ISA
}  // namespace oltr
