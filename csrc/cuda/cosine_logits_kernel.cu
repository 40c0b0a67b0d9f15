// cosine_logits: z_rc = scale * u_r . weight_c / |weight_c|,  u = v / (1 + |v|).
#include "cuda/bank_backward.h"

namespace oltr::cuda {
namespace {

// logits[r, first + c] = products[r, c] row[r] column[c]
template <class S>
struct Scaling {
  const Acc<S>*products, *row, *column;
  int64_t rows, count, stride, classes;
  S* logits;  // (B,C) from the chunk's first column on
};

// A block has one row of the chunk.
template <class S>
__global__ void scale_logits_kernel(Scaling<S> p) {
  using T = Acc<S>;
  const int64_t r = blockIdx.x;
  const T row = p.row[r];
  for_each_pack(p.count, [&](int64_t c, int left) {
    const Pack<T, kColumns> dots = load_pack<kColumns>(p.products + r * p.stride + c, left);
    const Pack<T, kColumns> column = load_pack<kColumns>(p.column + c, left);
    for (int j = 0; j < kColumns; ++j)
      if (j < left) p.logits[r * p.classes + c + j] = narrow<S>(dots.v[j] * row * column.v[j]);
  });
}

template <class S>
struct Forward {
  int64_t chunk;
  Acc<S>*products, *row, *column;
  int64_t bytes;
  Forward(Carver carve, Sizes size, Device device) {
    const int64_t element = sizeof(S), acc = sizeof(Acc<S>);
    chunk = chunk_classes(size.classes, size.batch * (acc + element) + size.width * element,
                          device.chunk_bytes);
    products = carve.array<Acc<S>>(size.batch * chunk);
    row = carve.array<Acc<S>>(size.batch);
    column = carve.array<Acc<S>>(chunk);
    bytes = carve.bytes();
  }
};

}  // namespace

int64_t workspace_bytes(const CosineLogitsForward& p, Device device) {
  int64_t bytes = 0;
  with_element(p.dtype, [&](auto s) {
    bytes = Forward<decltype(s)>(Carver(nullptr), p.size, device).bytes;
  });
  return bytes;
}

void enqueue(const CosineLogitsForward& p, Queue& queue) {
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  if (B == 0) return;
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    using T = Acc<S>;
    const Forward<S> work(Carver(queue.workspace), p.size, queue.device);
    const S* v = rows_of<S>(p.v);
    row_norms(queue, v, B, D, Squash<T>(), work.row);
    for (int64_t c0 = 0; c0 < C; c0 += work.chunk) {
      const int64_t n = C - c0 < work.chunk ? C - c0 : work.chunk;
      const S* weight = rows_of<S>(p.weight, c0, D);
      row_norms(queue, weight, n, D, CosineScale<T>{static_cast<T>(p.scale)}, work.column);
      product<S>(queue, p.precision, B, n, D, plain(v, D), transposed(weight, D), work.products,
                 work.chunk);
      const Scaling<S> scaling{
          work.products, work.row, work.column, B, n, work.chunk, C, rows_of<S>(p.logits, c0, 1)};
      launch(queue, scale_logits_kernel<S>, blocks_of(B), scaling);
    }
  });
}

int64_t workspace_bytes(const CosineLogitsBackward& p, Device device) {
  Carver carve(nullptr);
  with_element(p.dtype, [&](auto s) { CosineBackward<decltype(s)>(carve, p.size, false, device); });
  return carve.bytes();
}

void enqueue(const CosineLogitsBackward& p, Queue& queue) {
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    Carver carve(queue.workspace);
    const CosineBackward<S> work(carve, p.size, false, queue.device);
    work.run(queue, p, [&](int64_t first) {
      // The rule's rows are C apart, the chunk's own are not: it is given where its columns start.
      return GivenGradient<S>{rows_of<S>(p.grad_logits, first, 1), p.size.classes, work.row,
                              work.column};
    });
  });
}

}  // namespace oltr::cuda
