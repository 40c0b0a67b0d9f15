// memory_attention: out = softmax(x keys' + key_bias) memory. Backward: see bank_backward.h.
#pragma once

#include "cpu/bank_backward.h"

namespace oltr {
namespace OLTR_ISA {

template <class T>
static void memory_attention_forward(const MemoryAttentionForward& p, const Parallel& parallel) {
  const int64_t n = p.size.batch * p.size.width;
  const Converted<T> x(p.x, n), bias(p.key_bias, p.size.classes);
  const Buffer<T> out(n);
  BankForward<T> bank;
  bank.size = p.size;
  bank.x = x.data();
  bank.keys = p.keys;
  bank.key_bias = bias.data();
  bank.memory = p.memory;
  bank.recalled = out.data();
  bank.lse = static_cast<T*>(p.lse.data);
  bank_forward(bank, parallel);
  convert_out(out.data(), n, p.out.data, p.out.dtype, 0);
}

// delta_r = grad_r . out_r, the softmax's own correction.
template <class T>
OLTR_INLINE void row_dots(const T* a, const T* b, int64_t rows, int64_t width, T* out) {
  for (int64_t r = 0; r < rows; ++r) out[r] = dot(a + r * width, b + r * width, width);
}

template <class T>
static void memory_attention_backward(const MemoryAttentionBackward& p, const Parallel& parallel) {
  const int64_t B = p.size.batch, D = p.size.width, n = B * D;
  const Converted<T> x(p.x, n), bias(p.key_bias, p.size.classes), out(p.out, n),
      grad_out(p.grad_out, n);
  const Buffer<T> delta(B), grad_x(n);
  row_dots(grad_out.data(), out.data(), B, D, delta.data());
  BankBackward<T> bank;
  bank.size = p.size;
  bank.kind = LogitGradient::kAttention;
  bank.x = x.data();
  bank.keys = p.keys;
  bank.key_bias = bias.data();
  bank.lse = static_cast<const T*>(p.lse.data);
  bank.memory = p.memory;
  bank.grad_recalled = grad_out.data();
  bank.delta = delta.data();
  bank.grad_x = grad_x.data();
  bank.grad_keys = p.grad_keys;
  bank.grad_key_bias = p.grad_key_bias;
  bank.grad_memory = p.grad_memory;
  bank_backward(bank, parallel);
  convert_out(grad_x.data(), n, p.grad_x.data, p.grad_x.dtype, 0);
}

}  // namespace OLTR_ISA
}  // namespace oltr
