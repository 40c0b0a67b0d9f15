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
  const Converted<T> bias(p.key_bias, p.size.classes, parallel),
      gate_bias(p.selector_bias, D, parallel);
  const Buffer<T> recalled(n), gate(n);
  T* distance = static_cast<T*>(p.distance.data);
  BankForward<M> bank;
  bank.size = p.size;
  bank.x = p.x;
  bank.keys = p.keys;
  bank.logits.bias = bias.data();
  bank.memory = p.memory;
  bank.nearest = !p.nearest_given;
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
  parallel_ranges(parallel, B, kRowGrain, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(D), out(D);
    for (int64_t r = begin; r < end; ++r) {
      const T d = distance[r] < eps ? eps : distance[r], reach = scale / d;
      distance[r] = d;
      const T* x = rows(p.x, r, 1, D, scratch.data());
      const T *m = recalled.data() + r * D, *e = gate.data() + r * D;
      for (int64_t i = 0; i < D; ++i) out[i] = reach * (x[i] + e[i] * m[i]);
      for (int64_t i = 0; !std::isnormal(reach) && i < D; ++i)
        out[i] = scale * ((x[i] + e[i] * m[i]) / d);
      convert_out(out.data(), D, p.embedding.data, p.embedding.dtype, r * D);
      convert_out(m, D, p.memory_feature.data, p.memory_feature.dtype, r * D);
      convert_out(e, D, p.selector.data, p.selector.dtype, r * D);
    }
  });
}

template <class M>
static void meta_embedding_backward(const MetaEmbeddingBackward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t B = p.size.batch, D = p.size.width, n = B * D;
  const T* g_d = static_cast<const T*>(p.grad_distance.data);
  const T* distance = static_cast<const T*>(p.distance.data);
  const T scale = static_cast<T>(p.scale), eps = static_cast<T>(p.eps);
  const Buffer<T> grad_x(n), grad_m(n), grad_a(n);
  const Buffer<Pull<T>> pulls(B);
  parallel_ranges(parallel, B, kRowGrain, [&](int64_t begin, int64_t end) {
    const Buffer<T> lines(7 * D);
    const auto line = [&](Matrix m, int64_t r, int64_t i) {
      return m.data != nullptr ? rows(m, r, 1, D, lines.data() + i * D) : lines.data() + 5 * D;
    };
    T* t = lines.data() + 6 * D;
    fill(lines.data() + 5 * D, D, T(0));
    for (int64_t r = begin; r < end; ++r) {
      const T *g = line(p.grad_embedding, r, 0), *x = line(p.x, r, 1);
      const T *m = line(p.memory_feature, r, 2), *e = line(p.selector, r, 3);
      const T d = distance[r], reach = scale / d;
      for (int64_t i = 0; i < D; ++i) {
        t[i] = x[i] + e[i] * m[i];
        grad_x[r * D + i] = reach * g[i];
      }
      const T* g_e = line(p.grad_selector, r, 4);
      for (int64_t i = 0; i < D; ++i)
        grad_a[r * D + i] = (reach * g[i] * m[i] + g_e[i]) * (1 - e[i] * e[i]);
      const T* g_m = line(p.grad_memory_feature, r, 4);
      for (int64_t i = 0; i < D; ++i) grad_m[r * D + i] = reach * g[i] * e[i] + g_m[i];
      const T grad_d = (g_d != nullptr ? g_d[r] : T(0)) - reach * (dot(g, t, D) / d);
      const bool known = in_range(d * d);
      const T* c = known ? x : rows(p.memory, p.nearest[r], 1, D, lines.data() + 4 * D);
      const Gap<T> gap = known ? Gap<T>{d, 1} : gap_between(x, c, D);
      pulls[r] = pull_of(d <= eps ? T(0) : grad_d, gap.length, gap.scale);
    }
  });

  const Buffer<T> through_bank(n), through_gate(n);
  attention_backward<M>(p, p.memory_feature, {grad_m.data(), NativeDtype<T>::value},
                        through_bank.data(), parallel);

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

  parallel_ranges(parallel, B, kRowGrain, [&](int64_t begin, int64_t end) {
    const Buffer<T> pair(2 * D);
    for (int64_t r = begin; r < end; ++r) {
      T* line = grad_x.data() + r * D;
      pull_to(pulls[r], p.x, r, p.memory, p.nearest[r], D, line, pair.data());
      for (int64_t i = 0; i < D; ++i) line[i] += through_bank[r * D + i] + through_gate[r * D + i];
      convert_out(line, D, p.grad_x.data, p.grad_x.dtype, r * D);
    }
  });
  if (p.grad_memory.data != nullptr)
    push_winners(p.size, p.x, p.memory, p.nearest, pulls.data(), p.grad_memory, parallel);
}

}  // namespace OLTR_ISA
}  // namespace oltr
