// disc_centroids_loss: attract + repel_weight * clamp(margin - R, 0, 1e6), on x and centroids c with
//   attract = sum_i |x_i - c_yi|^2 / (2B),   R = sum_i sum_{j != y_i} |x_i - c_j|^2 / (BC).
// R in closed form, both sides shifted by mu = mean of c (R does not change, its terms stay small):
//   R = (B sum|c|^2 + C sum|x|^2 - 2 <sum x, sum c> - sum_i |x_i - c_yi|^2) / (BC).
//
// Backward, per unit of incoming gradient, w = -repel_weight where the clamp is open, else 0:
//   grad_x_i = (x_i - c_yi)/B + w (2C (x_i - mu) - 2 sum(c - mu) - 2 (x_i - c_yi)) / (BC)
//   grad_c_j = sum_{i: y_i = j} (c_j - x_i)/B
//            + w (2B (c_j - mu) - 2 sum(x - mu) + 2 sum_{i: y_i = j} (x_i - c_j)) / (BC)
// compat="official": the first term of grad_c_j ignores the incoming gradient and is divided by
// (number of i with y_i = j) + 1, as the released code has it.
#pragma once

#include "cpu/class_means.h"

namespace oltr {
namespace OLTR_ISA {

// The sums the closed form needs, in double: they cancel.
template <class T>
struct CentroidSums {
  Buffer<double> mu, sum_x, sum_c;  // (D)
  double norms_x = 0, norms_c = 0, own = 0;

  OLTR_INLINE CentroidSums(Matrix x, Matrix centroids, const int64_t* target, Sizes size)
      : mu(size.width), sum_x(size.width), sum_c(size.width) {
    const int64_t B = size.batch, C = size.classes, D = size.width;
    const Buffer<T> scratch(D), other(D);
    fill(mu.data(), D, 0.0);
    fill(sum_x.data(), D, 0.0);
    fill(sum_c.data(), D, 0.0);
    for (int64_t j = 0; j < C; ++j) {
      const T* c = rows(centroids, j, 1, D, scratch.data());
      for (int64_t d = 0; d < D; ++d) mu[d] += c[d];
    }
    for (int64_t d = 0; d < D; ++d) mu[d] /= static_cast<double>(C);
    norms_c = add_centred(centroids, C, D, sum_c.data(), scratch.data());
    norms_x = add_centred(x, B, D, sum_x.data(), scratch.data());
    for (int64_t i = 0; i < B; ++i) {
      const T* xi = rows(x, i, 1, D, scratch.data());
      const T* c = rows(centroids, target[i], 1, D, other.data());
      for (int64_t d = 0; d < D; ++d) {
        const double gap = static_cast<double>(xi[d]) - static_cast<double>(c[d]);
        own += gap * gap;
      }
    }
  }

 private:
  OLTR_INLINE double add_centred(Matrix m, int64_t n, int64_t D, double* sum, T* scratch) const {
    double norms = 0;
    for (int64_t i = 0; i < n; ++i) {
      const T* row = rows(m, i, 1, D, scratch);
      for (int64_t d = 0; d < D; ++d) {
        const double centred = static_cast<double>(row[d]) - mu[d];
        sum[d] += centred;
        norms += centred * centred;
      }
    }
    return norms;
  }
};

template <class M>
static void disc_centroids_forward(const DiscCentroidsForward& p, const Parallel&) {
  using T = typename M::Acc;
  *p.loss = *p.active = 0;  // an empty batch asks for nothing
  if (p.size.batch == 0) return;
  const double B = static_cast<double>(p.size.batch), C = static_cast<double>(p.size.classes);
  const CentroidSums<T> s(p.x, p.centroids, p.target, p.size);
  double cross = 0;
  for (int64_t d = 0; d < p.size.width; ++d) cross += s.sum_x[d] * s.sum_c[d];
  const double R = (B * s.norms_c + C * s.norms_x - 2 * cross - s.own) / (B * C);
  const double gap = p.margin - R;
  const double repel = gap < 0 ? 0 : gap > 1e6 ? 1e6 : gap;  // NaN passes through
  *p.loss = s.own / (2 * B) + p.repel_weight * repel;
  *p.active = gap >= 0 && gap <= 1e6 ? 1 : 0;
}

template <class M>
static void disc_centroids_backward(const DiscCentroidsBackward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  const CentroidSums<T> s(p.x, p.centroids, p.target, p.size);
  const Grouping groups(p.target, B, C);
  const int64_t rows_or_one = B > 0 ? B : 1;
  const double g = p.grad_loss / static_cast<double>(rows_or_one);
  const double n = static_cast<double>(rows_or_one) * static_cast<double>(C);
  const double w = -p.grad_loss * p.repel_weight * p.active * 2 / n;
  parallel_ranges(parallel, B, int64_t{64}, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(D), other(D), line(D);
    for (int64_t i = begin; i < end; ++i) {
      const T* x = rows(p.x, i, 1, D, scratch.data());
      const T* c = rows(p.centroids, p.target[i], 1, D, other.data());
      for (int64_t d = 0; d < D; ++d) {
        const double xd = x[d], gap = xd - c[d];
        line[d] = static_cast<T>(g * gap + w * (C * (xd - s.mu[d]) - s.sum_c[d] - gap));
      }
      convert_out(line.data(), D, p.grad_x.data, p.grad_x.dtype, i * D);
    }
  });
  parallel_ranges(parallel, C, int64_t{64}, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(D), other(D), line(D);
    const Buffer<double> pull(D);
    for (int64_t j = begin; j < end; ++j) {
      const T* c = rows(p.centroids, j, 1, D, other.data());
      const int64_t count = groups.start[j + 1] - groups.start[j];
      fill(pull.data(), D, 0.0);
      for (int64_t i = groups.start[j]; i < groups.start[j + 1]; ++i) {
        const T* x = rows(p.x, groups.order[i], 1, D, scratch.data());
        for (int64_t d = 0; d < D; ++d) pull[d] += static_cast<double>(c[d]) - x[d];
      }
      const double official = 1.0 / static_cast<double>((count + 1) * rows_or_one);
      const double attract = p.official ? official : g;
      for (int64_t d = 0; d < D; ++d)
        line[d] =
            static_cast<T>(attract * pull[d] + w * (B * (c[d] - s.mu[d]) - s.sum_x[d] - pull[d]));
      convert_out(line.data(), D, p.grad_centroids.data, p.grad_centroids.dtype, j * D);
    }
  });
}

}  // namespace OLTR_ISA
}  // namespace oltr
