// memory_attention: out = softmax(x keys' + key_bias) memory. Backward: see bank_backward.h.
#pragma once

#include "cpu/bank_backward.h"

namespace oltr {
namespace OLTR_ISA {

template <class M>
static void memory_attention_forward(const MemoryAttentionForward& p, const Parallel& parallel) {
  using T = typename M::Acc;
  const int64_t n = p.size.batch * p.size.width;
  const Converted<T> bias(p.key_bias, p.size.classes);
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
  convert_out(out.data(), n, p.out.data, p.out.dtype, 0);
}

// Shared with meta_embedding: `p` names x, keys, memory, lse and the bank's gradients; `recalled`
// and its gradient come in the accumulator type, and so does grad_x go out.
template <class M, class Params, class T = typename M::Acc>
static void attention_backward(const Params& p, const T* recalled, const T* grad_recalled,
                               T* grad_x, const Parallel& parallel) {
  const int64_t B = p.size.batch, D = p.size.width;
  const Converted<T> bias(p.key_bias, p.size.classes);
  const Buffer<T> delta(B);  // the softmax's own correction, grad_r . recalled_r
  for (int64_t r = 0; r < B; ++r) delta[r] = dot(grad_recalled + r * D, recalled + r * D, D);
  BankBackward<M> bank;
  bank.size = p.size;
  bank.kind = LogitGradient::kAttention;
  bank.x = p.x;
  bank.keys = p.keys;
  bank.logits.bias = bias.data();
  bank.lse = static_cast<const T*>(p.lse.data);
  bank.memory = p.memory;
  bank.grad_recalled = {grad_recalled, NativeDtype<T>::value};
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
  const Converted<T> out(p.out, n), grad_out(p.grad_out, n);
  const Buffer<T> grad_x(n);
  attention_backward<M>(p, out.data(), grad_out.data(), grad_x.data(), parallel);
  convert_out(grad_x.data(), n, p.grad_x.data, p.grad_x.dtype, 0);
}

}  // namespace OLTR_ISA
}  // namespace oltr
