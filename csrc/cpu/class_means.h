// class_means: means_c = (1/n_c) sum_{r: t_r = c} x_r, zero where n_c = 0.
// Backward: grad_x_r = grad_means_t / n_t.
#pragma once

#include "cpu/output.h"

namespace oltr {
namespace OLTR_ISA {

// Rows grouped by class, in row order within a class: start[c] .. start[c+1] of `order`.
struct Grouping {
  Buffer<int64_t> start, order;
  OLTR_INLINE Grouping(const int64_t* target, int64_t B, int64_t C) : start(C + 1), order(B) {
    fill(start.data(), C + 1, int64_t{0});
    for (int64_t r = 0; r < B; ++r) ++start[target[r] + 1];
    for (int64_t c = 0; c < C; ++c) start[c + 1] += start[c];
    const Buffer<int64_t> next(C);
    for (int64_t c = 0; c < C; ++c) next[c] = start[c];
    for (int64_t r = 0; r < B; ++r) order[next[target[r]]++] = r;
  }
};

// Asks for a row that will be read soon: rows of a class lie scattered, and no hardware guesses them.
OLTR_INLINE void fetch_ahead(Matrix m, int64_t row, int64_t width) {
  const int64_t bytes = width * dtype_bytes(m.dtype);
  const char* at = static_cast<const char*>(m.data) + row * bytes;
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + b);
}

// One sum of a million rows that are alike would drift by a hundredth, and stop at 2^24 of them.
template <class M>
static void class_means_forward(const ClassMeansForward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  constexpr int64_t kPart = 256;  // rows whose sum then joins the others' in double
  constexpr int64_t kAhead = 3;   // rows: enough to hide memory, few enough for the first cache
  const Grouping groups(p.target, B, C);
  Output(p.means, C, D).prepare();
  parallel_ranges(parallel, C, clamp(div_up(C, 64), 1, 1024), [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(D), mean(D);
    const Buffer<double> sum(D);
    Output out(p.means, C, D);
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = groups.start[c], last = groups.start[c + 1], count = last - first;
      const bool parts = count > kPart;
      if (parts) fill(sum.data(), D, 0.0);
      fill(mean.data(), D, T(0));
      for (int64_t i = first; i < last; ++i) {
        if (i + kAhead < B) fetch_ahead(p.x, groups.order[i + kAhead], D);
        add_scaled(mean.data(), T(1), rows(p.x, groups.order[i], 1, D, scratch.data()), D);
        if (!parts || ((i + 1 - first) % kPart != 0 && i + 1 < last)) continue;
        for (int64_t d = 0; d < D; ++d) sum[d] += static_cast<double>(mean[d]);
        fill(mean.data(), D, T(0));
      }
      for (int64_t d = 0; count > 0 && d < D; ++d)
        mean[d] = parts ? static_cast<T>(sum[d] / static_cast<double>(count))
                        : mean[d] / static_cast<T>(count);
      out.write(mean.data(), D, c, 1, end);
      p.counts[c] = count;
    }
  });
}

template <class M>
static void class_means_backward(const ClassMeansBackward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t D = p.size.width;
  parallel_ranges(parallel, p.size.batch, int64_t{64}, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(D), line(D);
    for (int64_t r = begin; r < end; ++r) {
      const T* g = rows(p.grad_means, p.target[r], 1, D, scratch.data());
      const T count = static_cast<T>(p.counts[p.target[r]]);
      for (int64_t d = 0; d < D; ++d) line[d] = g[d] / count;
      convert_out(line.data(), D, p.grad_x.data, p.grad_x.dtype, r * D);
    }
  });
}

}  // namespace OLTR_ISA
}  // namespace oltr
