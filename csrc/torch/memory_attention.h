#pragma once

#include "torch/glue.h"

namespace oltr {

template <class Device>
std::tuple<Tensor, Tensor> memory_attention(const Tensor& x, const Tensor& keys,
                                            const Tensor& key_bias, const Tensor& memory, bool,
                                            const std::string& precision) {
  Call call("memory_attention", "x", x);
  const int64_t B = x.size(0), D = x.size(1), C = keys.size(0);
  call.at_least_one("class", C);
  const Tensor out = call.empty({B, D}), lse = call.empty_acc({B});
  MemoryAttentionForward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.precision = kernel_precision("memory_attention", precision);
  p.x = call.in("x", x, {B, D});
  p.keys = call.in("keys", keys, {C, D});
  p.key_bias = call.in("key_bias", key_bias, {C});
  p.memory = call.in("memory", memory, {C, D});
  p.out = call.out(out);
  p.lse = call.out(lse);
  call.run<Device>(p);
  return {out, lse};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> memory_attention_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& keys, const Tensor& key_bias,
    const Tensor& memory, const Tensor& out, const Tensor& lse, bool memory_grad,
    const std::string& precision) {
  Call call("memory_attention_backward", "x", x);
  const int64_t B = x.size(0), D = x.size(1), C = keys.size(0);
  const Tensor grad_x = call.empty({B, D}), grad_keys = call.empty({C, D}),
               grad_key_bias = call.empty({C}), grad_memory = call.empty({memory_grad ? C : 0, D});
  MemoryAttentionBackward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.precision = kernel_precision("memory_attention_backward", precision);
  p.grad_out = call.in("grad_out", grad_out, {B, D});
  p.x = call.in("x", x, {B, D});
  p.keys = call.in("keys", keys, {C, D});
  p.key_bias = call.in("key_bias", key_bias, {C});
  p.memory = call.in("memory", memory, {C, D});
  p.out = call.in("out", out, {B, D});
  p.lse = call.in_acc("lse", lse, {B});
  p.grad_x = call.out(grad_x);
  p.grad_keys = call.out(grad_keys);
  p.grad_key_bias = call.out(grad_key_bias);
  if (memory_grad) p.grad_memory = call.out(grad_memory);
  call.run<Device>(p);
  return {grad_x, grad_keys, grad_key_bias, grad_memory};
}

}  // namespace oltr
