#pragma once

#include "torch/glue.h"

namespace oltr {

template <class Device>
Tensor cosine_logits(const Tensor& v, const Tensor& weight, double scale,
                     const std::string& precision) {
  Call call("cosine_logits", "v", v);
  const int64_t B = v.size(0), D = v.size(1), C = weight.size(0);
  call.at_least_one("class", C);
  const Tensor logits = call.empty({B, C});
  CosineLogitsForward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.precision = kernel_precision("cosine_logits", precision);
  p.scale = scale;
  p.v = call.in("v", v, {B, D});
  p.weight = call.in("weight", weight, {C, D});
  p.logits = call.out(logits);
  call.run<Device>(p);
  return logits;
}

template <class Device>
std::tuple<Tensor, Tensor> cosine_logits_backward(const Tensor& grad_logits, const Tensor& v,
                                                  const Tensor& weight, double scale,
                                                  const std::string& precision) {
  Call call("cosine_logits_backward", "v", v);
  const int64_t B = v.size(0), D = v.size(1), C = weight.size(0);
  const Tensor grad_v = call.empty({B, D}), grad_weight = call.empty({C, D});
  CosineLogitsBackward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.precision = kernel_precision("cosine_logits_backward", precision);
  p.scale = scale;
  p.grad_logits = call.in("grad_logits", grad_logits, {B, C});
  p.v = call.in("v", v, {B, D});
  p.weight = call.in("weight", weight, {C, D});
  p.grad_v = call.out(grad_v);
  p.grad_weight = call.out(grad_weight);
  call.run<Device>(p);
  return {grad_v, grad_weight};
}

}  // namespace oltr
