// meta_embedding: v = r (x + e m) with m = memory attention, e = tanh(x Ws' + bs) and
// r = scale / d, d = max(min_c |x - M_c|, eps). Attention and distance share one pass over the bank.
//
// Backward, with t = x + e m and g the gradient of v (details' gradients add where given):
//   grad_t = r g                     grad_d = -(scale / d^2) (g . t), zero where d = eps
//   grad_e = grad_t m,  grad_a = grad_e (1 - e^2),  a = x Ws' + bs
//   grad_m = grad_t e   (then memory_attention's backward)
//   grad_x = grad_t + grad_a Ws + attention's + grad_d (x - M_k) / d
#pragma once

#include "cpu/bank_logits.h"
#include "cpu/memory_attention.h"
#include "cpu/nearest_centroid.h"

namespace oltr {
namespace OLTR_ISA {

template <class M>
static void meta_embedding_forward(const MetaEmbeddingForward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, D = p.size.width, n = B * D;
  const Converted<T> x(p.x, n), bias(p.key_bias, p.size.classes), gate_bias(p.selector_bias, D);
  const Buffer<T> recalled(n), gate(n), out(n);
  T* distance = static_cast<T*>(p.distance.data);
  BankForward<M> bank;
  bank.size = p.size;
  bank.x = p.x;
  bank.keys = p.keys;
  bank.logits.bias = bias.data();
  bank.memory = p.memory;
  bank.nearest = true;
  bank.recalled = recalled.data();
  bank.lse = static_cast<T*>(p.lse.data);
  bank.distance = distance;
  bank.index = p.nearest;
  bank_forward(bank, parallel);
  const Sizes square{B, D, D};
  bank_logits<M>(square, p.x, p.selector_weight, LogitRule<T>{gate_bias.data()},
                 MutableMatrix{gate.data(), NativeDtype<T>::value}, parallel,
                 [](Vec<T> a) { return tanh_lanes(a); });
  const T scale = static_cast<T>(p.scale), eps = static_cast<T>(p.eps);
  parallel_ranges(parallel, B, int64_t{16}, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T d = distance[r] < eps ? eps : distance[r], reach = scale / d;
      distance[r] = d;
      for (int64_t i = r * D; i < (r + 1) * D; ++i) out[i] = reach * (x[i] + gate[i] * recalled[i]);
      if (std::isnormal(reach)) continue;
      for (int64_t i = r * D; i < (r + 1) * D; ++i)
        out[i] = scale * ((x[i] + gate[i] * recalled[i]) / d);
    }
  });
  convert_out(out.data(), n, p.embedding.data, p.embedding.dtype, 0);
  convert_out(recalled.data(), n, p.memory_feature.data, p.memory_feature.dtype, 0);
  convert_out(gate.data(), n, p.selector.data, p.selector.dtype, 0);
}

template <class M>
static void meta_embedding_backward(const MetaEmbeddingBackward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, D = p.size.width, n = B * D;
  const Converted<T> g(p.grad_embedding, n), g_m(p.grad_memory_feature, n), g_e(p.grad_selector, n),
      g_d(p.grad_distance, B), x(p.x, n), recalled(p.memory_feature, n), gate(p.selector, n);
  const T* distance = static_cast<const T*>(p.distance.data);
  const T scale = static_cast<T>(p.scale), eps = static_cast<T>(p.eps);
  const Buffer<T> grad_x(n), grad_m(n), grad_a(n), grad_d(B);
  parallel_ranges(parallel, B, int64_t{16}, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T d = distance[r], reach = scale / d;
      T along = 0;  // g . t
      for (int64_t i = r * D; i < (r + 1) * D; ++i) {
        const T grad_t = reach * g[i];
        along += g[i] * (x[i] + gate[i] * recalled[i]);
        const T grad_e = grad_t * recalled[i] + (g_e.data() != nullptr ? g_e[i] : T(0));
        grad_m[i] = grad_t * gate[i] + (g_m.data() != nullptr ? g_m[i] : T(0));
        grad_a[i] = grad_e * (1 - gate[i] * gate[i]);
        grad_x[i] = grad_t;
      }
      const T given = g_d.data() != nullptr ? g_d[r] : T(0);
      grad_d[r] = d <= eps ? T(0) : given - reach * (along / d);
    }
  });

  const Buffer<T> through_bank(n), through_gate(n);
  attention_backward<M>(p, recalled.data(), grad_m.data(), through_bank.data(), parallel);

  BankBackward<M> selector;
  selector.size = {B, D, D};
  selector.kind = LogitGradient::kGiven;
  selector.x = p.x;
  selector.keys = p.selector_weight;
  selector.grad_logits = {grad_a.data(), NativeDtype<T>::value};
  selector.grad_x = through_gate.data();
  selector.grad_keys = p.grad_selector_weight;
  selector.grad_key_bias = p.grad_selector_bias;
  bank_backward(selector, parallel);

  const WinnerGradient<T> winners(p.size, p.nearest);
  winners.run(x.data(), p.memory, grad_d.data(), distance, grad_x.data());
  if (p.grad_memory.data != nullptr) winners.add_to(p.grad_memory);
  for (int64_t i = 0; i < n; ++i) grad_x[i] += through_bank[i] + through_gate[i];
  convert_out(grad_x.data(), n, p.grad_x.data, p.grad_x.dtype, 0);
}

}  // namespace OLTR_ISA
}  // namespace oltr
