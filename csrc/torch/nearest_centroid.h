#pragma once

#include "torch/glue.h"

namespace oltr {

template <class Device>
std::tuple<Tensor, Tensor> nearest_centroid(const Tensor& x, const Tensor& memory,
                                            const std::string& precision) {
  Call call("nearest_centroid", "x", x);
  const int64_t B = x.size(0), D = x.size(1), C = memory.size(0);
  call.at_least_one("class", C);
  const Tensor distance = call.empty({B}), index = call.empty_index({B});
  NearestCentroidForward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.precision = kernel_precision("nearest_centroid", precision);
  p.x = call.in("x", x, {B, D});
  p.memory = call.in("memory", memory, {C, D});
  p.distance = call.out(distance);
  p.index = index.mutable_data_ptr<int64_t>();
  call.run<Device>(p);
  return {distance, index};
}

template <class Device>
std::tuple<Tensor, Tensor> nearest_centroid_backward(const Tensor& grad_distance, const Tensor& x,
                                                     const Tensor& memory, const Tensor& index,
                                                     bool memory_grad) {
  Call call("nearest_centroid_backward", "x", x);
  const int64_t B = x.size(0), D = x.size(1), C = memory.size(0);
  const Tensor grad_x = call.empty({B, D}), grad_memory = call.empty({memory_grad ? C : 0, D});
  NearestCentroidBackward p;
  p.size = {B, C, D};
  p.dtype = call.dtype();
  p.grad_distance = call.in("grad_distance", grad_distance, {B});
  p.x = call.in("x", x, {B, D});
  p.memory = call.in("memory", memory, {C, D});
  p.index = call.labels("index", index, B, C);
  p.grad_x = call.out(grad_x);
  if (memory_grad) p.grad_memory = call.out(grad_memory);
  call.run<Device>(p);
  return {grad_x, grad_memory};
}

}  // namespace oltr
