// nearest_centroid: d_r = min_c |x_r - memory_c|, k_r = its class.
// Backward: grad_x_r = g_r (x_r - memory_k) / d_r, grad_memory_k -= the same; zero where d_r = 0.
#include "cuda/bank_forward.h"

namespace oltr::cuda {
namespace {

template <class S>
__global__ void finish_distance_kernel(const Acc<S>* distance2, int64_t rows, S* distance) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (r < rows) distance[r] = narrow<S>(sqrt(distance2[r]));
}

// weight[r] = g_r / d_r, zero on a centroid. A warp a row.
template <class S>
__global__ void distance_gradient_kernel(const S* grad, const S* x, const S* memory,
                                         const int64_t* index, int64_t rows, int64_t classes,
                                         int64_t width, Acc<S>* weight) {
  using T = Acc<S>;
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (r >= rows) return;
  const bool valid = index[r] >= 0 && index[r] < classes;  // or the winners' kernel makes NaN
  const S *a = x + r * width, *c = memory + (valid ? index[r] : 0) * width;
  const T distance = sqrt(warp_sum<T>(width, [&](int64_t i) {
    const T gap = widen(a[i]) - widen(c[i]);
    return gap * gap;
  }));
  if (lane_index() == 0) weight[r] = distance == T(0) ? T(0) : widen(grad[r]) / distance;
}

}  // namespace

int64_t workspace_bytes(const NearestCentroidForward& p, Device device) {
  Carver carve(nullptr);
  with_element(p.dtype, [&](auto s) {
    BankForward<decltype(s), false, true>(carve, p.size, can_fuse(p.size, {p.x, p.memory}), device);
  });
  return carve.bytes();
}

void enqueue(const NearestCentroidForward& p, Queue& queue) {
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    Carver carve(queue.workspace);
    BankForward<S, false, true> bank(carve, p.size, can_fuse(p.size, {p.x, p.memory}),
                                     queue.device);
    bank.precision = p.precision;
    bank.x = rows_of<S>(p.x);
    bank.memory = rows_of<S>(p.memory);
    bank.run(queue, p.index);
    launch(queue, finish_distance_kernel<S>, blocks_of(p.size.batch, kThreads), bank.distance2,
           p.size.batch, rows_of<S>(p.distance));
  });
}

int64_t workspace_bytes(const NearestCentroidBackward& p, Device) {
  Carver carve(nullptr);
  carve.array<double>(p.size.batch);
  return carve.bytes();
}

void enqueue(const NearestCentroidBackward& p, Queue& queue) {
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  set_zero(queue, p.grad_memory, C * D);
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    Acc<S>* weight = Carver(queue.workspace).template array<Acc<S>>(B);
    const S *x = rows_of<S>(p.x), *memory = rows_of<S>(p.memory);
    launch(queue, distance_gradient_kernel<S>, blocks_of(B, kWarps), rows_of<S>(p.grad_distance), x,
           memory, p.index, B, C, D, weight);
    const Winners<S> winners{
        x, memory, p.index, weight, nullptr, rows_of<S>(p.grad_x), rows_of<S>(p.grad_memory),
        B, C,      D};
    launch(queue, winners_kernel<S>, blocks_of(B), winners);
  });
}

}  // namespace oltr::cuda
