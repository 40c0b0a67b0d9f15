#include "cpu/kernels.h"
#include "torch/glue.h"

namespace oltr {

static double scalar(const char* op, const char* name, const Tensor& t) {
  if (t.numel() != 1) fail(op, "expected ", name, " to be a scalar, got ", t.numel(), " elements");
  double value = 0;
  convert_in(t.const_data_ptr(), kernel_dtype(op, name, t), 0, 1, &value);
  return value;
}

static std::tuple<Tensor, Tensor> disc_centroids_loss(const Tensor& x, const Tensor& target,
                                                      const Tensor& centroids, double margin,
                                                      double repel_weight, bool) {
  Call call("disc_centroids_loss", "x", x);
  const int64_t B = x.size(0), D = x.size(1), C = centroids.size(0);
  call.at_least_one("class", C);
  const Tensor loss = call.empty_acc({}), sums = call.empty_sums({1 + 2 * D});
  double value = 0;
  DiscCentroidsForward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.margin = margin;
  p.repel_weight = repel_weight;
  p.x = call.in("x", x, {B, D});
  p.centroids = call.in("centroids", centroids, {C, D});
  p.target = call.labels("target", target, B, C);
  p.loss = &value;
  p.sums = sums.mutable_data_ptr<double>();
  kernels().disc_centroids_forward(p, torch_threads());
  const MutableMatrix out = call.out(loss);
  convert_out(&value, 1, out.data, out.dtype, 0);
  return {loss, sums};
}

static std::tuple<Tensor, Tensor> disc_centroids_loss_backward(
    const Tensor& grad_loss, const Tensor& x, const Tensor& target, const Tensor& centroids,
    const Tensor& sums, double repel_weight, bool official) {
  constexpr const char* op = "disc_centroids_loss_backward";
  Call call(op, "x", x);
  const int64_t B = x.size(0), D = x.size(1), C = centroids.size(0);
  const Tensor grad_x = call.empty({B, D}), grad_centroids = call.empty({C, D});
  DiscCentroidsBackward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.grad_loss = scalar(op, "grad_loss", grad_loss);
  p.sums = call.in_sums("sums", sums, {1 + 2 * D});
  p.repel_weight = repel_weight;
  p.official = official;
  p.x = call.in("x", x, {B, D});
  p.centroids = call.in("centroids", centroids, {C, D});
  p.target = call.labels("target", target, B, C);
  p.grad_x = call.out(grad_x);
  p.grad_centroids = call.out(grad_centroids);
  kernels().disc_centroids_backward(p, torch_threads());
  return {grad_x, grad_centroids};
}

STABLE_TORCH_LIBRARY_IMPL(oltr_ext, CPU, m) {
  m.impl("disc_centroids_loss", TORCH_BOX(&disc_centroids_loss));
  m.impl("disc_centroids_loss_backward", TORCH_BOX(&disc_centroids_loss_backward));
}

}  // namespace oltr
