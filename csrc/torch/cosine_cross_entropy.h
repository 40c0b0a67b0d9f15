#pragma once

#include <cmath>

#include "torch/glue.h"

namespace oltr {

// On the CPU alone: reading a GPU's prior would wait for it; there, a wrong one makes NaN of losses.
inline void check_prior(const char* op, const Tensor& v, Matrix log_prior, int64_t classes) {
  for (int64_t c = 0; v.is_cpu() && log_prior.data != nullptr && c < classes; ++c) {
    double p = 0;
    convert_in(log_prior.data, log_prior.dtype, c, 1, &p);
    if (std::isnan(p) || p == HUGE_VAL)
      fail(op, "expected class_prior to be finite and not negative, it is not for class ", c);
  }
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> cosine_cross_entropy(const Tensor& v, const Tensor& weight,
                                                        const Tensor& target,
                                                        const OptionalTensor& log_prior,
                                                        double scale, double label_smoothing,
                                                        int64_t ignore_index, int64_t others,
                                                        const std::string& precision) {
  constexpr const char* op = "cosine_cross_entropy";
  Call call(op, "v", v);
  const int64_t B = v.size(0), D = v.size(1), C = weight.size(0);
  call.at_least_one("class", C);
  const Tensor loss = call.empty_acc({B}), lse = call.empty_acc({B}), counted = call.empty_acc({});
  CosineCrossEntropyForward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.precision = kernel_precision("cosine_cross_entropy", precision);
  p.scale = scale;
  p.label_smoothing = label_smoothing;
  p.ignore_index = ignore_index;
  p.others = others;
  p.v = call.in("v", v, {B, D});
  p.weight = call.in("weight", weight, {C, D});
  p.log_prior = call.in_acc_optional("log_prior", log_prior, {C});
  check_prior(op, v, p.log_prior, C);
  p.target = call.labels("target", target, B, C + (others != kNoShard), ignore_index);
  p.loss = call.out(loss);
  p.lse = call.out(lse);
  p.counted = call.out(counted);
  call.run<Device>(p);
  return {loss, lse, counted};
}

template <class Device>
std::tuple<Tensor, Tensor> cosine_cross_entropy_backward(
    const Tensor& grad_loss, const Tensor& v, const Tensor& weight, const Tensor& target,
    const OptionalTensor& log_prior, const Tensor& lse, double scale, double label_smoothing,
    int64_t ignore_index, int64_t others, const std::string& precision) {
  Call call("cosine_cross_entropy_backward", "v", v);
  const int64_t B = v.size(0), D = v.size(1), C = weight.size(0);
  const Tensor grad_v = call.empty({B, D}), grad_weight = call.empty({C, D});
  CosineCrossEntropyBackward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.precision = kernel_precision("cosine_cross_entropy_backward", precision);
  p.scale = scale;
  p.label_smoothing = label_smoothing;
  p.ignore_index = ignore_index;
  p.others = others;
  p.grad_loss = call.in_acc("grad_loss", grad_loss, {B});
  p.v = call.in("v", v, {B, D});
  p.weight = call.in("weight", weight, {C, D});
  p.log_prior = call.in_acc_optional("log_prior", log_prior, {C});
  p.lse = call.in_acc("lse", lse, {B});
  p.target = call.labels("target", target, B, C + (others != kNoShard), ignore_index);
  p.grad_v = call.out(grad_v);
  p.grad_weight = call.out(grad_weight);
  call.run<Device>(p);
  return {grad_v, grad_weight};
}

}  // namespace oltr
