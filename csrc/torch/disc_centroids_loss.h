#pragma once

#include "torch/glue.h"

namespace oltr {

template <class Device>
std::tuple<Tensor, Tensor> disc_centroids_loss(const Tensor& x, const Tensor& target,
                                               const Tensor& centroids, double margin,
                                               double repel_weight, bool) {
  Call call("disc_centroids_loss", "x", x);
  const int64_t B = x.size(0), D = x.size(1), C = centroids.size(0);
  call.at_least_one("class", C);
  const Tensor loss = call.empty_acc({}), sums = call.empty_sums({1 + 2 * D});
  DiscCentroidsLossForward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.margin = margin;
  p.repel_weight = repel_weight;
  p.x = call.in("x", x, {B, D});
  p.centroids = call.in("centroids", centroids, {C, D});
  p.target = call.labels("target", target, B, C);
  p.loss = call.out(loss);
  p.sums = sums.mutable_data_ptr<double>();
  call.run<Device>(p);
  return {loss, sums};
}

template <class Device>
std::tuple<Tensor, Tensor> disc_centroids_loss_backward(const Tensor& grad_loss, const Tensor& x,
                                                        const Tensor& target,
                                                        const Tensor& centroids, const Tensor& sums,
                                                        double repel_weight, bool official) {
  Call call("disc_centroids_loss_backward", "x", x);
  const int64_t B = x.size(0), D = x.size(1), C = centroids.size(0);
  call.at_least_one("class", C);
  const Tensor grad_x = call.empty({B, D}), grad_centroids = call.empty({C, D});
  DiscCentroidsLossBackward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.grad_loss = call.in_acc("grad_loss", grad_loss, {});
  p.sums = call.in_sums("sums", sums, {1 + 2 * D});
  p.repel_weight = repel_weight;
  p.official = official;
  p.x = call.in("x", x, {B, D});
  p.centroids = call.in("centroids", centroids, {C, D});
  p.target = call.labels("target", target, B, C);
  p.grad_x = call.out(grad_x);
  p.grad_centroids = call.out(grad_centroids);
  call.run<Device>(p);
  return {grad_x, grad_centroids};
}

}  // namespace oltr
