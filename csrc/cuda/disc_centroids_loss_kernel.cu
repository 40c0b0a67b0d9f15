// disc_centroids_loss: attract + repel_weight * clamp(margin - R, 0, 1e6), on x and centroids c with
//   attract = sum_i |x_i - c_yi|^2 / (2B),   R = sum_i sum_{j != y_i} |x_i - c_j|^2 / (BC).
// R in closed form, both sides shifted by s = c_0 (R does not change, its terms stay small):
//   R = (B sum|c|^2 + C sum|x|^2 - 2 <sum x, sum c> - sum_i |x_i - c_yi|^2) / (BC).
//
// Backward, per unit of incoming gradient, w = -repel_weight where the clamp is open, else 0:
//   grad_x_i = (x_i - c_yi)/B + w (2C (x_i - s) - 2 sum(c - s) - 2 (x_i - c_yi)) / (BC)
//   grad_c_j = sum_{i: y_i = j} (c_j - x_i)/B
//            + w (2B (c_j - s) - 2 sum(x - s) + 2 sum_{i: y_i = j} (x_i - c_j)) / (BC)
// compat="official": the first term of grad_c_j ignores the incoming gradient and is divided by
// (number of i with y_i = j) + 1, as the released code has it.
//
// The bank is read once a direction, and sums run in double: they cancel.
#include <limits>

#include "cuda/rows.h"

namespace oltr::cuda {
namespace {

// Rows that one block sums; few enough blocks that their sums are cheap to add.
int64_t rows_a_part(int64_t rows) { return clamp(div_up(rows, 512), 32, rows > 32 ? rows : 32); }
int64_t parts_of(int64_t rows) { return div_up(rows, rows_a_part(rows)); }

// Blocks of columns of a part.
int64_t slices_of(int64_t width) { return div_up(width, kThreads); }

// sums[part, d] = sum of (m_id - shift_d) over a part's rows, squares[part, slice] = sum of the
// squares of a block's columns. A block has kThreads columns of a part.
template <class S>
__global__ void shifted_sums_kernel(const S* m, int64_t rows, int64_t each, int64_t width,
                                    int64_t slices, const S* shift, double* sums, double* squares) {
  OLTR_DYNAMIC_SHARED(shared);
  const int64_t part = blockIdx.x / slices, begin = part * each;
  const int64_t end = begin + each < rows ? begin + each : rows;
  const int64_t d = blockIdx.x % slices * kThreads + threadIdx.x;
  double sum = 0, square = 0;
  if (d < width) {
    const double origin = widen(read(shift + d));
    OLTR_UNROLL(8)
    for (int64_t r = begin; r < end; ++r) {
      const double gap = static_cast<double>(widen(read(m + r * width + d))) - origin;
      sum += gap;
      square += gap * gap;
    }
    sums[part * width + d] = sum;
  }
  square = block_reduce(square, Add(), shared);
  if (threadIdx.x == 0) squares[blockIdx.x] = square;
}

// own[i] = |x_i - c_yi|^2, NaN where the label is no class. A warp a row.
template <class S>
__global__ void own_distances_kernel(const S* x, const S* centroids, const int64_t* target,
                                     int64_t rows, int64_t classes, int64_t width, double* own) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (r >= rows) return;
  const int64_t y = target[r];
  const bool valid = y >= 0 && y < classes;
  const S* c = centroids + (valid ? y : 0) * width;
  const double sum = warp_sum<double>(width, [&](int64_t d) {
    const double gap =
        static_cast<double>(widen(x[r * width + d])) - static_cast<double>(widen(c[d]));
    return gap * gap;
  });
  if (lane_index() == 0) own[r] = valid ? sum : kNan;
}

template <class T>
struct Terms {
  const double *own, *squares_x, *squares_c;  // (B), a block each
  int64_t rows, classes, width, parts_x, parts_c;
  double margin, repel_weight;
  double* sums;  // (1 + 2 D): whether the clamp is open, sum(x - s), sum(c - s)
  T* loss;
};
// One block.
template <class T>
__global__ void finish_loss_kernel(Terms<T> p) {
  OLTR_DYNAMIC_SHARED(shared);
  const auto total = [&](const double* of, int64_t n) {
    return block_sum<double>(n, shared, [&](int64_t i) { return of[i]; });
  };
  const double own = total(p.own, p.rows);
  const double squares_x = total(p.squares_x, p.parts_x);
  const double squares_c = total(p.squares_c, p.parts_c);
  const double *sum_x = p.sums + 1, *sum_c = p.sums + 1 + p.width;
  const double cross =
      block_sum<double>(p.width, shared, [&](int64_t d) { return sum_x[d] * sum_c[d]; });
  if (threadIdx.x != 0) return;
  const double b = static_cast<double>(p.rows), n = static_cast<double>(p.classes);
  const double R = (b * squares_c + n * squares_x - 2 * cross - own) / (b * n);
  const double gap = p.margin - R;
  const double repel = gap < 0 ? 0 : gap > 1e6 ? 1e6 : gap;  // NaN passes through
  *p.loss = static_cast<T>(own / (2 * b) + p.repel_weight * repel);
  p.sums[0] = gap >= 0 && gap <= 1e6 ? 1 : 0;
}

template <class S>
struct Gradients {
  const S *x, *centroids;
  const int64_t* target;
  const double* sums;
  const Acc<S>* grad_loss;  // ()
  int64_t rows, classes, width;
  double repel_weight;
  bool official;
  S *grad_x, *grad_centroids;

  __device__ double share() const { return *grad_loss / static_cast<double>(rows); }
  // w / (BC), with the incoming gradient and the formula's 2 in it.
  __device__ double repel() const {
    return -2 * *grad_loss * repel_weight * sums[0] /
           (static_cast<double>(rows) * static_cast<double>(classes));
  }
  // What every class gets.
  __device__ double base(double w, double c, int64_t d) const {
    const double slope = w * static_cast<double>(rows);
    return slope * (c - static_cast<double>(widen(read(centroids + d)))) - w * read(sums + 1 + d);
  }
};

template <class S>
__global__ void row_gradient_kernel(Gradients<S> p) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const int64_t r = blockIdx.x, y = p.target[r];
  const bool valid = y >= 0 && y < p.classes;
  const double g = p.share(), w = p.repel();
  for (int64_t d = threadIdx.x; d < p.width; d += kThreads) {
    const double x = widen(p.x[r * p.width + d]), s = widen(p.centroids[d]);
    const double gap = valid ? x - static_cast<double>(widen(p.centroids[y * p.width + d])) : kNan;
    const double repelled = static_cast<double>(p.classes) * (x - s) - p.sums[1 + p.width + d];
    p.grad_x[r * p.width + d] = narrow<S>(static_cast<Acc<S>>(g * gap + w * (repelled - gap)));
  }
}

// Every class, as if no row were its own. A warp a class.
template <class S>
__global__ void class_gradient_kernel(Gradients<S> p) {
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarps + warp_index();
  if (c >= p.classes) return;
  const double w = p.repel();
  const S* centroid = p.centroids + c * p.width;
  S* out = p.grad_centroids + c * p.width;
  OLTR_UNROLL(8)
  for (int64_t d = lane_index(); d < p.width; d += kWarp) {
    const double all = w == 0 ? 0 : p.base(w, widen(read(centroid + d)), d);
    out[d] = narrow<S>(static_cast<Acc<S>>(all));
  }
}

// The classes of the batch once more, with their own rows. The first row of a class writes it.
template <class S>
__global__ void own_gradient_kernel(Gradients<S> p) {
  const int64_t r = blockIdx.x, y = p.target[r];
  if (y < 0 || y >= p.classes || !first_labelled(p.target, r)) return;
  const double g = p.share(), w = p.repel();
  for (int64_t first = 0; first < p.width; first += kThreads) {
    const int64_t d = first + threadIdx.x;
    const double c = d < p.width ? static_cast<double>(widen(p.centroids[y * p.width + d])) : 0.0;
    double pull = 0;
    int64_t count = 0;
    for_each_labelled(p.target, r, p.rows, y, [&](int64_t i) {
      if (d < p.width) pull += c - static_cast<double>(widen(p.x[i * p.width + d]));
      ++count;
    });
    if (d >= p.width) continue;
    const double official = 1.0 / (static_cast<double>(count + 1) * static_cast<double>(p.rows));
    const double own = ((p.official ? official : g) - w) * pull;
    const double all = w == 0 ? 0 : p.base(w, c, d);
    p.grad_centroids[y * p.width + d] = narrow<S>(static_cast<Acc<S>>(all + own));
  }
}

struct Forward {
  double *own, *sums_x, *sums_c, *squares_x, *squares_c;
  int64_t bytes;
  Forward(Carver carve, Sizes size)
      : own(carve.array<double>(size.batch)),
        sums_x(carve.array<double>(parts_of(size.batch) * size.width)),
        sums_c(carve.array<double>(parts_of(size.classes) * size.width)),
        squares_x(carve.array<double>(parts_of(size.batch) * slices_of(size.width))),
        squares_c(carve.array<double>(parts_of(size.classes) * slices_of(size.width))),
        bytes(carve.bytes()) {}
};

}  // namespace

int64_t workspace_bytes(const DiscCentroidsLossForward& p, Device) {
  return Forward(Carver(nullptr), p.size).bytes;
}

void enqueue(const DiscCentroidsLossForward& p, Queue& queue) {
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  if (B == 0) {  // an empty batch asks for nothing
    set_zero(queue, p.loss, 1);
    return set_zero(queue, p.sums, (1 + 2 * D) * static_cast<int64_t>(sizeof(double)));
  }
  const Forward work(Carver(queue.workspace), p.size);
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    using T = Acc<S>;
    const S *x = rows_of<S>(p.x), *centroids = rows_of<S>(p.centroids);
    const int64_t slices = slices_of(D);
    const auto sum = [&](const S* m, int64_t n, double* sums, double* squares, double* out) {
      launch(queue, shifted_sums_kernel<S>, blocks_of(parts_of(n) * slices), m, n, rows_a_part(n),
             D, slices, centroids, sums, squares);
      launch(queue, add_parts_kernel<double, double>, blocks_of(D, kThreads), sums, parts_of(n), D,
             D, out);
    };
    sum(x, B, work.sums_x, work.squares_x, p.sums + 1);
    sum(centroids, C, work.sums_c, work.squares_c, p.sums + 1 + D);
    launch(queue, own_distances_kernel<S>, blocks_of(B, kWarps), x, centroids, p.target, B, C, D,
           work.own);
    const Terms<T> terms{
        work.own, work.squares_x,       work.squares_c,       B,        C,
        D,        parts_of(B) * slices, parts_of(C) * slices, p.margin, p.repel_weight,
        p.sums,   rows_of<T>(p.loss)};
    launch(queue, finish_loss_kernel<T>, blocks_of(1), terms);
  });
}

int64_t workspace_bytes(const DiscCentroidsLossBackward&, Device) { return 0; }

void enqueue(const DiscCentroidsLossBackward& p, Queue& queue) {
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  if (B == 0) return set_zero(queue, p.grad_centroids, C * D);
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    const Gradients<S> gradients{rows_of<S>(p.x),
                                 rows_of<S>(p.centroids),
                                 p.target,
                                 p.sums,
                                 rows_of<Acc<S>>(p.grad_loss),
                                 B,
                                 C,
                                 D,
                                 p.repel_weight,
                                 p.official,
                                 rows_of<S>(p.grad_x),
                                 rows_of<S>(p.grad_centroids)};
    launch(queue, row_gradient_kernel<S>, blocks_of(B), gradients);
    launch(queue, class_gradient_kernel<S>, blocks_of(C, kWarps), gradients);
    launch(queue, own_gradient_kernel<S>, blocks_of(B), gradients);
  });
}

}  // namespace oltr::cuda
