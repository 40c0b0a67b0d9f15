#pragma once

#include "torch/glue.h"

namespace oltr {

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> meta_embedding(
    const Tensor& x, const Tensor& memory, const Tensor& keys, const Tensor& key_bias,
    const Tensor& selector_weight, const Tensor& selector_bias, double scale, double eps, bool,
    const std::string& precision) {
  Call call("meta_embedding", "x", x);
  const int64_t B = x.size(0), D = x.size(1), C = memory.size(0);
  call.at_least_one("class", C);
  const Tensor embedding = call.empty({B, D}), memory_feature = call.empty({B, D}),
               selector = call.empty({B, D}), distance = call.empty_acc({B}),
               nearest = call.empty_index({B}), lse = call.empty_acc({B});
  MetaEmbeddingForward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.precision = kernel_precision("meta_embedding", precision);
  p.scale = scale;
  p.eps = eps;
  p.x = call.in("x", x, {B, D});
  p.memory = call.in("memory", memory, {C, D});
  p.keys = call.in("keys", keys, {C, D});
  p.key_bias = call.in("key_bias", key_bias, {C});
  p.selector_weight = call.in("selector_weight", selector_weight, {D, D});
  p.selector_bias = call.in("selector_bias", selector_bias, {D});
  p.embedding = call.out(embedding);
  p.memory_feature = call.out(memory_feature);
  p.selector = call.out(selector);
  p.distance = call.out(distance);
  p.lse = call.out(lse);
  p.nearest = nearest.mutable_data_ptr<int64_t>();
  call.run<Device>(p);
  return {embedding, memory_feature, selector, distance, nearest, lse};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> meta_embedding_backward(
    const Tensor& grad_embedding, const OptionalTensor& grad_memory_feature,
    const OptionalTensor& grad_selector, const OptionalTensor& grad_distance, const Tensor& x,
    const Tensor& memory, const Tensor& keys, const Tensor& key_bias, const Tensor& selector_weight,
    const Tensor& memory_feature, const Tensor& selector, const Tensor& distance,
    const Tensor& nearest, const Tensor& lse, double scale, double eps, bool memory_grad,
    const std::string& precision) {
  Call call("meta_embedding_backward", "x", x);
  const int64_t B = x.size(0), D = x.size(1), C = memory.size(0);
  const Tensor grad_x = call.empty({B, D}), grad_memory = call.empty({memory_grad ? C : 0, D}),
               grad_keys = call.empty({C, D}), grad_key_bias = call.empty({C}),
               grad_selector_weight = call.empty({D, D}), grad_selector_bias = call.empty({D});
  MetaEmbeddingBackward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.precision = kernel_precision("meta_embedding_backward", precision);
  p.scale = scale;
  p.eps = eps;
  p.grad_embedding = call.in("grad_embedding", grad_embedding, {B, D});
  p.grad_memory_feature = call.in_optional("grad_memory_feature", grad_memory_feature, {B, D});
  p.grad_selector = call.in_optional("grad_selector", grad_selector, {B, D});
  p.grad_distance = call.in_acc_optional("grad_distance", grad_distance, {B});
  p.x = call.in("x", x, {B, D});
  p.memory = call.in("memory", memory, {C, D});
  p.keys = call.in("keys", keys, {C, D});
  p.key_bias = call.in("key_bias", key_bias, {C});
  p.selector_weight = call.in("selector_weight", selector_weight, {D, D});
  p.memory_feature = call.in("memory_feature", memory_feature, {B, D});
  p.selector = call.in("selector", selector, {B, D});
  p.distance = call.in_acc("distance", distance, {B});
  p.lse = call.in_acc("lse", lse, {B});
  p.nearest = call.labels("nearest", nearest, B, C);
  p.grad_x = call.out(grad_x);
  if (memory_grad) p.grad_memory = call.out(grad_memory);
  p.grad_keys = call.out(grad_keys);
  p.grad_key_bias = call.out(grad_key_bias);
  p.grad_selector_weight = call.out(grad_selector_weight);
  p.grad_selector_bias = call.out(grad_selector_bias);
  call.run<Device>(p);
  return {grad_x, grad_memory, grad_keys, grad_key_bias, grad_selector_weight, grad_selector_bias};
}

}  // namespace oltr
