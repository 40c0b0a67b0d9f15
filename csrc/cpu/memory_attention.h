// memory_attention: out = softmax(x keys' + key_bias) memory. Backward: see bank_backward.h.
#pragma once

#include "cpu/bank_backward.h"

namespace oltr {
namespace OLTR_ISA {

template <class M>
static void memory_attention_forward(const MemoryAttentionForward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t n = p.size.batch * p.size.width;
  const Converted<T> bias(p.key_bias, p.size.classes, parallel);
  const Buffer<T> out(n);
  BankForward<M> bank;
  bank.size = p.size;
  bank.x = p.x;
  bank.keys = p.keys;
  bank.logits.bias = bias.data();
  bank.memory = p.memory;
  bank.recalled = out.data();
  bank.lse = static_cast<T*>(p.lse.data);
  bank_forward(bank, parallel);
  convert_all(out.data(), n, p.out, parallel);
}

// Shared with meta_embedding: `p` names x, keys, memory, lse and the bank's gradients; grad_x goes
// out in the accumulator type.
template <class M, class Params, class T = typename M::Acc>
static void attention_backward(const Params& p, Matrix recalled, Matrix grad_recalled, T* grad_x,
                               const Parallel& parallel) {
  const int64_t B = p.size.batch, D = p.size.width;
  const Converted<T> bias(p.key_bias, p.size.classes, parallel);
  const Buffer<T> delta(B);  // the softmax's own correction, grad_r . recalled_r
  parallel_ranges(parallel, B, kRowGrain, [&](int64_t begin, int64_t end) {
    const Buffer<T> scratch(D), other(D);
    for (int64_t r = begin; r < end; ++r)
      delta[r] = dot(rows(grad_recalled, r, 1, D, scratch.data()),
                     rows(recalled, r, 1, D, other.data()), D);
  });
  BankBackward<M> bank;
  bank.size = p.size;
  bank.kind = LogitGradient::kAttention;
  bank.x = p.x;
  bank.keys = p.keys;
  bank.logits.bias = bias.data();
  bank.lse = static_cast<const T*>(p.lse.data);
  bank.memory = p.memory;
  bank.grad_recalled = grad_recalled;
  bank.delta = delta.data();
  bank.grad_x = grad_x;
  bank.grad_keys = p.grad_keys;
  bank.grad_key_bias = p.grad_key_bias;
  bank.grad_memory = p.grad_memory;
  bank_backward(bank, parallel);
}

template <class M>
static void memory_attention_backward(const MemoryAttentionBackward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t n = p.size.batch * p.size.width;
  const Buffer<T> grad_x(n);
  attention_backward<M>(p, p.out, p.grad_out, grad_x.data(), parallel);
  convert_all(grad_x.data(), n, p.grad_x, parallel);
}

}  // namespace OLTR_ISA
}  // namespace oltr
