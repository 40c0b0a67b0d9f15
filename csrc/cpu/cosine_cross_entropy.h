// cosine_cross_entropy: with logits z_rc = scale u_r . w_c / |w_c| + log_prior_c and smoothing a,
//   loss_r = lse_r - (1 - a) z_r,target - a mean_c z_rc
// where the mean runs over classes of finite log prior. It needs no B x C: it is one product of u_r
// with the mean of the scaled weights. Of a shard see common/params.h.
#pragma once

#include "cpu/cosine_logits.h"

namespace oltr {
namespace OLTR_ISA {

// Mean over the possible classes of scale w_c / |w_c| (into `mean`, width D) and of log_prior; what
// `others` classes add to it is for their shards to say.
template <class T>
static T possible_mean(Matrix weight, T scale, const T* log_prior, int64_t others, int64_t C,
                       int64_t D, T* mean, const Parallel& parallel) {
  const auto possible = [&](int64_t c) {
    return log_prior == nullptr || std::isfinite(log_prior[c]);
  };
  int64_t count = others;
  double prior = 0;
  for (int64_t c = 0; c < C; ++c) {
    if (!possible(c)) continue;
    ++count;
    if (log_prior != nullptr) prior += log_prior[c];
  }
  const int64_t grain = clamp(div_up(C, 32), 64, 1024), parts = div_up(C, grain);
  const Buffer<double> sums(parts * D);
  parallel_tasks(parallel, parts, [&](int64_t part) {
    const Buffer<T> scratch(D);
    double* sum = sums.data() + part * D;
    fill(sum, D, 0.0);
    for (int64_t c = part * grain; c < C && c < (part + 1) * grain; ++c) {
      if (!possible(c)) continue;
      const T* w = rows(weight, c, 1, D, scratch.data());
      const T norm = std::sqrt(dot(w, w, D)), s = norm == T(0) ? T(0) : scale / norm;
      for (int64_t d = 0; d < D; ++d) sum[d] += static_cast<double>(w[d] * s);
    }
  });
  for (int64_t d = 0; d < D; ++d) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += sums[part * D + d];
    mean[d] = static_cast<T>(sum / static_cast<double>(count));
  }
  return static_cast<T>(prior / static_cast<double>(count));
}

template <class M>
static void cosine_cross_entropy_forward(const CosineCrossEntropyForward& p,
                                         const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  const Buffer<T> u(B * D), mean(D), picked(B);
  const T* prior = static_cast<const T*>(p.log_prior.data);
  const T scale = static_cast<T>(p.scale), a = static_cast<T>(p.label_smoothing);
  const bool whole = p.others == kNoShard;
  const int64_t others = whole ? 0 : p.others;
  T* loss = static_cast<T*>(p.loss.data);
  T* lse = static_cast<T*>(p.lse.data);
  squash(p.v, B, D, u.data(), parallel);
  BankForward<M> bank;
  bank.size = p.size;
  bank.x = {u.data(), NativeDtype<T>::value};
  bank.keys = p.weight;
  bank.logits = {prior, true, scale};
  bank.target = p.target;
  bank.picked = picked.data();
  bank.lse = lse;
  bank_forward(bank, parallel);
  T mean_prior = 0;
  if (a > 0)
    mean_prior = possible_mean(p.weight, scale, prior, others, C, D, mean.data(), parallel);
  int64_t counted = 0;
  for (int64_t r = 0; r < B; ++r) counted += p.target[r] != p.ignore_index;
  parallel_ranges(parallel, B, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      loss[r] = 0;
      if (p.target[r] == p.ignore_index) continue;
      const T own = p.target[r] < C ? picked[r] : T(0);
      loss[r] = (whole ? lse[r] : T(0)) - (1 - a) * own;
      if (a > 0) loss[r] -= a * (dot(u.data() + r * D, mean.data(), D) + mean_prior);
    }
  });
  *static_cast<T*>(p.counted.data) = static_cast<T>(counted);
}

template <class M>
static void cosine_cross_entropy_backward(const CosineCrossEntropyBackward& p,
                                          const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  const Buffer<T> u(B * D), grad_u(B * D), grad_loss(B);
  const T* prior = static_cast<const T*>(p.log_prior.data);
  squash(p.v, B, D, u.data(), parallel);
  int64_t possible = p.others == kNoShard ? 0 : p.others;
  for (int64_t c = 0; c < C; ++c) possible += prior == nullptr || std::isfinite(prior[c]);
  for (int64_t r = 0; r < B; ++r) {
    const bool ignored = p.target[r] == p.ignore_index;
    grad_loss[r] = ignored ? T(0) : static_cast<const T*>(p.grad_loss.data)[r];
  }
  BankBackward<M> bank;
  bank.size = p.size;
  bank.kind = LogitGradient::kCrossEntropy;
  bank.x = {u.data(), NativeDtype<T>::value};
  bank.keys = p.weight;
  bank.logits = {prior, true, static_cast<T>(p.scale)};
  bank.lse = static_cast<const T*>(p.lse.data);
  bank.grad_loss = grad_loss.data();
  bank.target = p.target;
  bank.smoothing = static_cast<T>(p.label_smoothing);
  bank.uniform = possible > 0 ? 1 / static_cast<T>(possible) : T(0);
  bank.grad_x = grad_u.data();
  bank.grad_keys = p.grad_weight;
  bank_backward(bank, parallel);
  squash_backward(p.v, grad_u.data(), B, D, p.grad_v, parallel);
}

}  // namespace OLTR_ISA
}  // namespace oltr
