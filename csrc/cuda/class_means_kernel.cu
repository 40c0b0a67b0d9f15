// class_means: means_c = (1/n_c) sum_{r: t_r = c} x_r, zero where n_c = 0.
// Backward: grad_x_r = grad_means_t / n_t.
#include <limits>

#include "cuda/rows.h"

namespace oltr::cuda {
namespace {

// The first place in `sorted` that is not below `label`.
__device__ inline int64_t lower_bound(const int64_t* sorted, int64_t n, int64_t label) {
  int64_t low = 0;
  while (n > 0) {
    const int64_t half = n / 2;
    const bool below = sorted[low + half] < label;
    low = below ? low + half + 1 : low;
    n = below ? n - half - 1 : half;
  }
  return low;
}

// Blocks that share a class where classes are few, each with some of its columns.
int64_t slices_of(int64_t classes, int64_t width) {
  return clamp(div_up(4096, classes), 1, div_up(width, kWarp));
}

// A block's warps take the class's rows in turns; their sums are added in order. One sum of many rows
// that are alike would drift.
template <class S>
__global__ void class_means_kernel(const S* x, const int64_t* sorted, const int64_t* order,
                                   int64_t rows, int64_t classes, int64_t width, int64_t slices,
                                   S* means, int64_t* counts) {
  using T = Acc<S>;
  OLTR_DYNAMIC_SHARED(shared);
  constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
  constexpr int64_t kPart = 64 * kWarps;  // rows whose sums then join the others' in double
  double* sums = reinterpret_cast<double*>(shared);  // (kWarps, kWarp)
  const int64_t c = blockIdx.x / slices, slice = blockIdx.x % slices;
  const int64_t begin = lower_bound(sorted, rows, c);
  const int64_t count = lower_bound(sorted + begin, rows - begin, c + 1);
  // A label that is no class would be lost in silence.
  const bool valid = rows == 0 || (sorted[0] >= 0 && sorted[rows - 1] < classes);
  for (int64_t first = slice * kWarp; first < width; first += slices * kWarp) {
    const int64_t d = first + lane_index();
    double sum = 0;
    for (int64_t part = 0; part < (d < width ? count : 0); part += kPart) {
      const int64_t end = part + kPart < count ? part + kPart : count;
      T some = 0;
      OLTR_UNROLL(4)
      for (int64_t i = part + warp_index(); i < end; i += kWarps)
        some += widen(read(x + read(order + begin + i) * width + d));
      sum += static_cast<double>(some);
    }
    __syncthreads();
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp_index() != 0 || d >= width) continue;
    for (int w = 1; w < kWarps; ++w) sum += sums[w * kWarp + lane_index()];
    const T mean = count == 0 ? T(0) : static_cast<T>(sum / static_cast<double>(count));
    means[c * width + d] = narrow<S>(valid ? mean : kNan);
  }
  if (slice == 0 && threadIdx.x == 0) counts[c] = count;
}

template <class S>
__global__ void class_means_backward_kernel(const S* grad_means, const int64_t* target,
                                            const int64_t* counts, int64_t classes, int64_t width,
                                            S* grad_x) {
  using T = Acc<S>;
  constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
  const int64_t r = blockIdx.x, y = target[r];
  const bool valid = y >= 0 && y < classes;
  const T count = valid ? static_cast<T>(counts[y]) : T(1);
  for (int64_t d = threadIdx.x; d < width; d += kThreads)
    grad_x[r * width + d] = narrow<S>(valid ? widen(grad_means[y * width + d]) / count : kNan);
}

}  // namespace

int64_t workspace_bytes(const ClassMeansForward&, Device) { return 0; }

void enqueue(const ClassMeansForward& p, Queue& queue) {
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    const int64_t slices = slices_of(p.size.classes, p.size.width);
    Launch l = blocks_of(p.size.classes * slices);
    l.shared_bytes = kThreads * static_cast<int64_t>(sizeof(double));
    launch(queue, class_means_kernel<S>, l, rows_of<S>(p.x), p.sorted, p.order, p.size.batch,
           p.size.classes, p.size.width, slices, rows_of<S>(p.means), p.counts);
  });
}

int64_t workspace_bytes(const ClassMeansBackward&, Device) { return 0; }

void enqueue(const ClassMeansBackward& p, Queue& queue) {
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    launch(queue, class_means_backward_kernel<S>, blocks_of(p.size.batch), rows_of<S>(p.grad_means),
           p.target, p.counts, p.size.classes, p.size.width, rows_of<S>(p.grad_x));
  });
}

}  // namespace oltr::cuda
