// The merge rule. Everything over the class bank is a reduction whose partial results merge.
//
// For one row of the batch the state is (m, l, o, d2, k): the running maximum of the attention
// logits, the sum of exp(logit - m), the exp-weighted sum of centroids, the smallest squared
// distance and its class. Two states merge by the rule below, which is associative and commutative
// (in the exact numbers; m, d2 and k also in floating point). The same rule joins SIMD lanes, tiles,
// threads, streaming multiprocessors, chunks and ranks. `V` may be a scalar or a SIMD vector.
#pragma once

#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define OLTR_HD __host__ __device__ __forceinline__
#elif defined(__GNUC__) || defined(__clang__)
// Always inlined: a copy emitted for one instruction set must never serve another.
#define OLTR_HD inline __attribute__((always_inline))
#else
#define OLTR_HD inline
#endif

namespace oltr {

// The identity of the rule: merging it with a state changes nothing.
template <class T>
struct Identity {
  static constexpr T max = std::numeric_limits<T>::lowest();  // finite: exp(max - max) must be 1
  static constexpr T sum = 0;
  static constexpr T distance2 = std::numeric_limits<T>::infinity();
  static constexpr int64_t index = std::numeric_limits<int64_t>::max();
};

// Softmax part. Joins (max_b, sum_b) into (max_a, sum_a) and returns in `keep` and `take` the
// factors by which the weighted sums o_a and o_b enter the merged o. A NaN logit poisons the sum,
// never the maximum, so that it stays in its own row.
template <class V, class Exp>
OLTR_HD void merge_softmax(V& max_a, V& sum_a, V max_b, V sum_b, V& keep, V& take, Exp exp) {
  const V m = max_b > max_a ? max_b : max_a;
  keep = exp(max_a - m);
  take = exp(max_b - m);
  sum_a = sum_a * keep + sum_b * take;
  max_a = m;
}

// Distance part. True when (d2_a, a) is to be kept over (d2_b, b): smaller distance first, lower
// class index on ties, and NaN before everything, as torch.min has it.
template <class T>
OLTR_HD bool closer(T d2_a, int64_t a, T d2_b, int64_t b) {
  const bool nan_a = d2_a != d2_a;
  const bool nan_b = d2_b != d2_b;
  if (nan_a || nan_b) return nan_a && (!nan_b || a < b);
  return d2_a < d2_b || (d2_a == d2_b && a < b);
}

}  // namespace oltr
