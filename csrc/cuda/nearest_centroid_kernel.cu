// nearest_centroid: d_r = min_c |x_r - memory_c|, k_r = its class.
// Backward: grad_x_r = g_r (x_r - memory_k) / d_r, grad_memory_k -= the same; zero where d_r = 0.
#include "cuda/bank_forward.h"
#include "cuda/measure_again.h"

namespace oltr::cuda {
namespace {

// A warp a row.
template <class S>
__global__ void finish_distance_kernel(const S* x, const S* memory, const Acc<S>* distance2,
                                       int64_t rows, int64_t classes, int64_t width, S* distance,
                                       int64_t* index) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (r >= rows) return;
  const auto found = measured(x + r * width, memory, classes, width, distance2[r], index[r]);
  if (lane_index() != 0) return;
  distance[r] = narrow<S>(sqrt(found.distance2) / found.scale);
  index[r] = found.index;
}

// pull[r] of g_r. A warp a row.
template <class S>
__global__ void distance_gradient_kernel(const S* grad, const S* x, const S* memory,
                                         const int64_t* index, int64_t rows, int64_t classes,
                                         int64_t width, Pull<Acc<S>>* pull) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (r >= rows) return;
  const bool valid = index[r] >= 0 && index[r] < classes;  // or the winners' kernel makes NaN
  const auto gap = gap_between(x + r * width, memory + (valid ? index[r] : 0) * width, width);
  if (lane_index() == 0) pull[r] = pull_of(widen(grad[r]), gap.length, gap.scale);
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
    launch(queue, finish_distance_kernel<S>, blocks_of(p.size.batch, kWarps), bank.x, bank.memory,
           bank.distance2, p.size.batch, p.size.classes, p.size.width, rows_of<S>(p.distance),
           p.index);
  });
}

int64_t workspace_bytes(const NearestCentroidBackward& p, Device) {
  Carver carve(nullptr);
  carve.array<Pull<double>>(p.size.batch);
  return carve.bytes();
}

void enqueue(const NearestCentroidBackward& p, Queue& queue) {
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  set_zero(queue, p.grad_memory, C * D);
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    Pull<Acc<S>>* pull = Carver(queue.workspace).template array<Pull<Acc<S>>>(B);
    const S *x = rows_of<S>(p.x), *memory = rows_of<S>(p.memory);
    launch(queue, distance_gradient_kernel<S>, blocks_of(B, kWarps), rows_of<S>(p.grad_distance), x,
           memory, p.index, B, C, D, pull);
    const Winners<S> winners{
        x, memory, p.index, pull, nullptr, rows_of<S>(p.grad_x), rows_of<S>(p.grad_memory),
        B, C,      D};
    launch(queue, winners_kernel<S>, blocks_of(B), winners);
  });
}

}  // namespace oltr::cuda
