#pragma once

#include "torch/glue.h"

namespace oltr {

template <class Device>
std::tuple<Tensor, Tensor> class_means(const Tensor& x, const Tensor& target, int64_t num_classes) {
  Call call("class_means", "x", x);
  const int64_t B = x.size(0), D = x.size(1);
  call.at_least_one("class", num_classes);
  const Tensor means = call.empty({num_classes, D}), counts = call.empty_index({num_classes});
  ClassMeansForward p;
  p.size = {B, num_classes, D};
  p.dtype = call.dtype();
  p.x = call.in("x", x, {B, D});
  p.target = call.labels("target", target, B, num_classes);
  p.means = call.out(means);
  p.counts = counts.mutable_data_ptr<int64_t>();
  const std::optional<Sorted> groups = call.sort_labels(target);
  if (groups.has_value()) {
    p.sorted = groups->labels.const_data_ptr<int64_t>();
    p.order = groups->order.const_data_ptr<int64_t>();
  }
  call.run<Device>(p);
  return {means, counts};
}

template <class Device>
Tensor class_means_backward(const Tensor& grad_means, const Tensor& target, const Tensor& counts) {
  Call call("class_means_backward", "grad_means", grad_means);
  const int64_t B = target.numel(), C = grad_means.size(0), D = grad_means.size(1);
  const Tensor grad_x = call.empty({B, D});
  ClassMeansBackward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.grad_means = call.in("grad_means", grad_means, {C, D});
  p.target = call.labels("target", target, B, C);
  p.counts = call.in_index("counts", counts, {C});
  p.grad_x = call.out(grad_x);
  call.run<Device>(p);
  return grad_x;
}

}  // namespace oltr
