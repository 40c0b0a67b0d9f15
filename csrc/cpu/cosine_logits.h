// cosine_logits: z_rc = scale * u_r . weight_c / |weight_c|,  u = v / (1 + |v|).
// The norm ratio of the paper's classifier, (|v| / (1 + |v|)) (v / |v|), is u: no division by zero.
//
// Backward of u, with h its gradient:  grad_v = (h - u (v . h) / |v|) / (1 + |v|)
// where the second term is 0 at v = 0. That of weight: see bank_backward.h.
#pragma once

#include "cpu/bank_backward.h"
#include "cpu/bank_logits.h"

namespace oltr {
namespace OLTR_ISA {

template <class T>
static void squash(Matrix v, int64_t B, int64_t D, T* u, const Parallel& parallel) {
  parallel_ranges(parallel, B, kRowGrain, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(D);
    for (int64_t r = begin; r < end; ++r) {
      const T* vr = rows(v, r, 1, D, scratch.data());
      const T shrink = 1 / (1 + std::sqrt(dot(vr, vr, D)));
      for (int64_t i = 0; i < D; ++i) u[r * D + i] = vr[i] * shrink;
    }
  });
}

template <class T>
static void squash_backward(Matrix v, const T* h, int64_t B, int64_t D, MutableMatrix grad_v,
                            const Parallel& parallel) {
  parallel_ranges(parallel, B, kRowGrain, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(D), line(D);
    for (int64_t r = begin; r < end; ++r) {
      const T* vr = rows(v, r, 1, D, scratch.data());
      const T norm = std::sqrt(dot(vr, vr, D)), shrink = 1 / (1 + norm);
      const T along = norm == T(0) ? T(0) : dot(vr, h + r * D, D) * shrink / norm;
      for (int64_t i = 0; i < D; ++i) line[i] = (h[r * D + i] - vr[i] * along) * shrink;
      convert_out(line.data(), D, grad_v.data, grad_v.dtype, r * D);
    }
  });
}

template <class M>
static void cosine_logits_forward(const CosineLogitsForward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, D = p.size.width;
  const Buffer<T> u(B * D);
  squash(p.v, B, D, u.data(), parallel);
  bank_logits<M>(p.size, {u.data(), NativeDtype<T>::value}, p.weight,
                 LogitRule<T>{nullptr, true, static_cast<T>(p.scale)}, p.logits, parallel,
                 [](Vec<T> z) { return z; });
}

template <class M>
static void cosine_logits_backward(const CosineLogitsBackward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, D = p.size.width;
  const Buffer<T> u(B * D), grad_u(B * D);
  squash(p.v, B, D, u.data(), parallel);
  BankBackward<M> bank;
  bank.size = p.size;
  bank.kind = LogitGradient::kGiven;
  bank.x = {u.data(), NativeDtype<T>::value};
  bank.keys = p.weight;
  bank.logits = {nullptr, true, static_cast<T>(p.scale)};
  bank.grad_logits = p.grad_logits;
  bank.grad_x = grad_u.data();
  bank.grad_keys = p.grad_weight;
  bank_backward(bank, parallel);
  squash_backward(p.v, grad_u.data(), B, D, p.grad_v, parallel);
}

}  // namespace OLTR_ISA
}  // namespace oltr
