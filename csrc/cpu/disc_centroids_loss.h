// disc_centroids_loss: attract + repel_weight * clamp(margin - R, 0, 1e6), on x and centroids c with
//   attract = sum_i |x_i - c_yi|^2 / (2B),   R = sum_i sum_{j != y_i} |x_i - c_j|^2 / (BC).
// R in closed form, both sides shifted by s = c_0 (R does not change, its terms stay small):
//   R = (B sum|c|^2 + C sum|x|^2 - 2 <sum x, sum c> - sum_i |x_i - c_yi|^2) / (BC).
//
// Backward, per unit of incoming gradient, w = -repel_weight where the clamp is open, else 0:
//   grad_x_i = (x_i - c_yi)/B + w (2C (x_i - s) - 2 sum(c - s) - 2 (x_i - c_yi)) / (BC)
//   grad_c_j = sum_{i: y_i = j} (c_j - x_i)/B
//            + w (2B (c_j - s) - 2 sum(x - s) + 2 sum_{i: y_i = j} (x_i - c_j)) / (BC)
// compat="official": the first term of grad_c_j ignores the incoming gradient and is divided by
// (number of i with y_i = j) + 1, as the released code has it.
//
// The bank is read once a direction, and sums run in double: they cancel.
#pragma once

#include "cpu/class_means.h"
#include "cpu/output.h"

namespace oltr {
namespace OLTR_ISA {

OLTR_INLINE Vec<double> widen(const double* p) { return load<double>(p); }
OLTR_INLINE Vec<double> widen(const float* p) {
  typedef float Half __attribute__((vector_size(OLTR_VECTOR_BYTES / 2)));
  Half h;
  __builtin_memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, Vec<double>);
}

// sum[d] += sum_i (m_id - shift_d); returns sum_i |m_i - shift|^2.
template <class T>
OLTR_INLINE double add_shifted(const T* m, int64_t n, int64_t D, const double* shift, double* sum) {
  constexpr int L = Lanes<double>::n;
  Vec<double> squares[2] = {};
  int64_t d = 0;
  for (; d + L <= D; d += L) {
    const Vec<double> origin = load<double>(shift + d);
    Vec<double> column = load<double>(sum + d);
    for (int64_t i = 0; i < n; ++i) {
      __builtin_prefetch(m + (n + i) * D + d);  // the next rows; past the end it is harmless
      const Vec<double> gap = widen(m + i * D + d) - origin;
      column += gap;
      squares[i % 2] += gap * gap;
    }
    store<double>(sum + d, column);
  }
  double rest = 0;
  for (; d < D; ++d)
    for (int64_t i = 0; i < n; ++i) {
      const double gap = static_cast<double>(m[i * D + d]) - shift[d];
      sum[d] += gap;
      rest += gap * gap;
    }
  return sum_lanes<double>(squares[0] + squares[1]) + rest;
}

// As above for a whole matrix, in parts whose sums are added in their order.
template <class T>
static double shifted_sums(Matrix m, int64_t n, int64_t D, const double* shift, double* sum,
                           const Parallel& parallel) {
  constexpr int64_t kRows = 8;  // at a time, so that a column's sum stays in a register
  const int64_t grain = clamp(div_up(n, 64), 64, 4096), parts = div_up(n, grain);
  const Buffer<double> sums(parts * D), squares(parts);
  parallel_ranges(parallel, n, grain, [&](int64_t begin, int64_t end) {
    const int64_t part = begin / grain;
    const Buffer<T> scratch(m.dtype == NativeDtype<T>::value ? 0 : kRows * D);
    double* to = sums.data() + part * D;
    fill(to, D, 0.0);
    squares[part] = 0;
    int64_t i = begin;
    for (; i + kRows <= end; i += kRows) {
      const T* block = rows(m, i, kRows, D, scratch.data());
      squares[part] += add_shifted(block, kRows, D, shift, to);
    }
    if (i < end)
      squares[part] += add_shifted(rows(m, i, end - i, D, scratch.data()), end - i, D, shift, to);
  });
  double total = 0;
  fill(sum, D, 0.0);
  for (int64_t part = 0; part < parts; ++part) {
    total += squares[part];
    add_scaled(sum, 1.0, sums.data() + part * D, D);
  }
  return total;
}

template <class M>
static void disc_centroids_loss_forward(const DiscCentroidsLossForward& p,
                                        const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  double *active = p.sums, *sum_x = p.sums + 1, *sum_c = p.sums + 1 + D;
  const auto set_loss = [&](double loss) { convert_out(&loss, 1, p.loss.data, p.loss.dtype, 0); };
  set_loss(0);  // an empty batch asks for nothing
  fill(p.sums, 1 + 2 * D, 0.0);
  if (B == 0) return;
  const Buffer<double> shift(D);
  const Buffer<T> scratch(D), other(D);
  convert_in(p.centroids.data, p.centroids.dtype, 0, D, shift.data());
  const double norms_x = shifted_sums<T>(p.x, B, D, shift.data(), sum_x, parallel);
  const double norms_c = shifted_sums<T>(p.centroids, C, D, shift.data(), sum_c, parallel);
  double own = 0, cross = 0;
  for (int64_t i = 0; i < B; ++i) {
    const T* x = rows(p.x, i, 1, D, scratch.data());
    const T* c = rows(p.centroids, p.target[i], 1, D, other.data());
    for (int64_t d = 0; d < D; ++d) {
      const double gap = static_cast<double>(x[d]) - static_cast<double>(c[d]);
      own += gap * gap;
    }
  }
  for (int64_t d = 0; d < D; ++d) cross += sum_x[d] * sum_c[d];
  const double b = static_cast<double>(B), n = static_cast<double>(C);
  const double R = (b * norms_c + n * norms_x - 2 * cross - own) / (b * n);
  const double gap = p.margin - R;
  const double repel = gap < 0 ? 0 : gap > 1e6 ? 1e6 : gap;  // NaN passes through
  set_loss(own / (2 * b) + p.repel_weight * repel);
  *active = gap >= 0 && gap <= 1e6 ? 1 : 0;
}

template <class M>
static void disc_centroids_loss_backward(const DiscCentroidsLossBackward& p,
                                         const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  const double *sum_x = p.sums + 1, *sum_c = p.sums + 1 + D;
  const Buffer<double> shift(D);
  convert_in(p.centroids.data, p.centroids.dtype, 0, D, shift.data());
  const Grouping groups(p.target, B, C);
  const int64_t rows_or_one = B > 0 ? B : 1;
  double incoming = 0;
  convert_in(p.grad_loss.data, p.grad_loss.dtype, 0, 1, &incoming);
  const double g = incoming / static_cast<double>(rows_or_one);
  const double n = static_cast<double>(rows_or_one) * static_cast<double>(C);
  const double w = -incoming * p.repel_weight * p.sums[0] * 2 / n;
  parallel_ranges(parallel, B, int64_t{64}, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(D), other(D), line(D);
    for (int64_t i = begin; i < end; ++i) {
      const T* x = rows(p.x, i, 1, D, scratch.data());
      const T* c = rows(p.centroids, p.target[i], 1, D, other.data());
      for (int64_t d = 0; d < D; ++d) {
        const double xd = x[d], gap = xd - static_cast<double>(c[d]);
        line[d] = static_cast<T>(g * gap +
                                 w * (static_cast<double>(C) * (xd - shift[d]) - sum_c[d] - gap));
      }
      convert_out(line.data(), D, p.grad_x.data, p.grad_x.dtype, i * D);
    }
  });
  // w (B (c - s) - sum x) = slope c + offset, for every class alike.
  const double slope = w * static_cast<double>(B);
  const Buffer<double> offset(D);
  for (int64_t d = 0; d < D; ++d) offset[d] = -slope * shift[d] - w * sum_x[d];
  Output(p.grad_centroids, C, D).prepare();
  parallel_ranges(parallel, C, clamp(div_up(C, 64), 16, 1024), [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(D), other(D), line(D);
    const Buffer<double> pull(D);
    Output out(p.grad_centroids, C, D);
    for (int64_t j = begin; j < end; ++j) {
      const T* c = rows(p.centroids, j, 1, D, other.data());
      const int64_t count = groups.start[j + 1] - groups.start[j];
      if (w == 0)
        fill(line.data(), D, T(0));
      else
        for (int64_t d = 0; d < D; ++d)
          line[d] = static_cast<T>(slope * static_cast<double>(c[d]) + offset[d]);
      if (count > 0) {
        fill(pull.data(), D, 0.0);
        for (int64_t i = groups.start[j]; i < groups.start[j + 1]; ++i) {
          const T* x = rows(p.x, groups.order[i], 1, D, scratch.data());
          for (int64_t d = 0; d < D; ++d)
            pull[d] += static_cast<double>(c[d]) - static_cast<double>(x[d]);
        }
        const double official = 1.0 / static_cast<double>((count + 1) * rows_or_one);
        const double attract = (p.official ? official : g) - w;
        for (int64_t d = 0; d < D; ++d) line[d] += static_cast<T>(attract * pull[d]);
      }
      out.write(line.data(), D, j, 1, end);
    }
  });
}

}  // namespace OLTR_ISA
}  // namespace oltr
