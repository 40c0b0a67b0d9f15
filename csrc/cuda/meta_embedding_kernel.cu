// meta_embedding: v = r (x + e m) with m = memory attention, e = tanh(x Ws' + bs) and
// r = scale / d, d = max(min_c |x - M_c|, eps). Attention and distance share one pass over the bank.
//
// Backward, with t = x + e m and g the gradient of v (details' gradients add where given):
//   grad_t = r g                     grad_d = -(scale / d^2) (g . t), zero where d = eps
//   grad_e = grad_t m,  grad_a = grad_e (1 - e^2),  a = x Ws' + bs
//   grad_m = grad_t e   (then memory_attention's backward)
//   grad_x = grad_t + grad_a Ws + attention's + grad_d (x - M_k) / d
#include "cuda/bank_backward.h"
#include "cuda/bank_forward.h"
#include "cuda/measure_again.h"

namespace oltr::cuda {
namespace {

// All that follows the pass over the bank. A block a row.
template <class S>
struct Finish {
  const S *x, *memory, *gate_bias;                       // (B,D) (C,D) (D)
  const Acc<S>*gate, *max, *sum, *recalled, *distance2;  // (B,D) x Ws', then the row state
  Acc<S> scale, eps;
  int64_t classes, width;
  S *embedding, *memory_feature, *selector;  // (B,D)
  Acc<S>*distance, *lse;                     // (B)
  int64_t* nearest;                          // (B)
};

template <class S>
__global__ void finish_embedding_kernel(Finish<S> p) {
  using T = Acc<S>;
  const int64_t r = blockIdx.x;
  // Each warp for itself.
  const auto found =
      measured(p.x + r * p.width, p.memory, p.classes, p.width, p.distance2[r], p.nearest[r]);
  const T l = p.sum[r], root = sqrt(found.distance2) / found.scale;
  const T distance = root < p.eps ? p.eps : root, reach = p.scale / distance;
  const bool normal =
      reach >= std::numeric_limits<T>::min() && reach <= std::numeric_limits<T>::max();
  for (int64_t d = threadIdx.x; d < p.width; d += kThreads) {
    const int64_t i = r * p.width + d;
    const T recalled = p.recalled[i] / l;
    const T gate = tanh(p.gate[i] + widen(p.gate_bias[d]));
    p.memory_feature[i] = narrow<S>(recalled);
    p.selector[i] = narrow<S>(gate);
    const T joined = widen(p.x[i]) + gate * recalled;
    p.embedding[i] = narrow<S>(normal ? reach * joined : p.scale * (joined / distance));
  }
  __syncthreads();  // all have read which seemed the nearest
  if (threadIdx.x != 0) return;
  p.nearest[r] = found.index;
  p.distance[r] = distance;
  p.lse[r] = p.max[r] + log(l);
}

// The gradients of everything up to the two banks. A block a row.
template <class S>
struct Gate {
  const S *grad_embedding, *grad_memory_feature, *grad_selector;  // (B,D); the last two optional
  const Acc<S>* grad_distance;                                    // (B); optional
  const S *x, *memory, *memory_feature, *selector;                // (B,D) (C,D) (B,D) (B,D)
  const Acc<S>* distance;                                         // (B)
  const int64_t* nearest;                                         // (B)
  Acc<S> scale, eps;
  int64_t classes, width;
  S *grad_recalled, *grad_gate;  // (B,D) grad_m, grad_a
  Acc<S>*grad_x, *delta;         // (B,D) grad_t; (B) grad_m . m
  Pull<Acc<S>>* pull;            // (B) of grad_d
};

template <class S>
__global__ void gate_backward_kernel(Gate<S> p) {
  using T = Acc<S>;
  OLTR_DYNAMIC_SHARED(shared);
  const int64_t r = blockIdx.x;
  const T distance = p.distance[r], reach = p.scale / distance;
  T along = 0, delta = 0;  // g . t, grad_m . m
  for (int64_t d = threadIdx.x; d < p.width; d += kThreads) {
    const int64_t i = r * p.width + d;
    const T g = widen(p.grad_embedding[i]), recalled = widen(p.memory_feature[i]);
    const T gate = widen(p.selector[i]), grad_t = reach * g;
    along += g * (widen(p.x[i]) + gate * recalled);
    T grad_recalled = grad_t * gate, grad_gate = grad_t * recalled;
    if (p.grad_memory_feature != nullptr) grad_recalled += widen(p.grad_memory_feature[i]);
    if (p.grad_selector != nullptr) grad_gate += widen(p.grad_selector[i]);
    p.grad_recalled[i] = narrow<S>(grad_recalled);
    delta += widen(p.grad_recalled[i]) * recalled;  // of what the products will see
    p.grad_gate[i] = narrow<S>(grad_gate * (1 - gate * gate));
    p.grad_x[i] = grad_t;
  }
  along = block_reduce(along, Add(), shared);
  delta = block_reduce(delta, Add(), shared);
  Gap<T> gap{distance, 1};
  const int64_t k = p.nearest[r];
  if (!in_range(distance * distance) && k >= 0 && k < p.classes)
    gap = gap_between(p.x + r * p.width, p.memory + k * p.width, p.width);
  if (threadIdx.x != 0) return;
  p.delta[r] = delta;
  const T given = p.grad_distance == nullptr ? T(0) : p.grad_distance[r];
  const T grad_d = distance <= p.eps ? T(0) : given - reach * (along / distance);
  p.pull[r] = pull_of(grad_d, gap.length, gap.scale);
}

// sums[part, d] = the sum of kGradientRows rows of m. A thread a column.
template <class S>
__global__ void column_sums_kernel(const S* m, int64_t rows, int64_t width, int64_t column_blocks,
                                   Acc<S>* sums) {
  const int64_t part = blockIdx.x / column_blocks;
  const int64_t d = blockIdx.x % column_blocks * kThreads + threadIdx.x;
  if (d >= width) return;
  const int64_t last = (part + 1) * kGradientRows;
  Acc<S> sum = 0;
  OLTR_UNROLL(8)
  for (int64_t r = part * kGradientRows; r < (last < rows ? last : rows); ++r)
    sum += widen(read(m + r * width + d));
  sums[part * width + d] = sum;
}

template <class S>
struct Forward {
  BankForward<S, true, true> bank;
  Acc<S>* gate;
  int64_t bytes;
  Forward(Carver carve, const MetaEmbeddingForward& p, Device device)
      : bank(carve, p.size, can_fuse(p.size, {p.x, p.keys, p.memory}), device),
        gate(carve.array<Acc<S>>(p.size.batch * p.size.width)),
        bytes(carve.bytes()) {}
};

template <class S>
struct Backward {
  AttentionBackward<S> bank;
  Acc<S>*grad_x, *sums;
  Pull<Acc<S>>* pull;
  S *grad_recalled, *grad_gate;
  int64_t bytes;
  Backward(Carver carve, Sizes size, Device device)
      : bank(carve, size, device),
        grad_x(carve.array<Acc<S>>(size.batch * size.width)),
        sums(carve.array<Acc<S>>(div_up(size.batch, kGradientRows) * size.width)),
        pull(carve.array<Pull<Acc<S>>>(size.batch)),
        grad_recalled(carve.array<S>(size.batch * size.width)),
        grad_gate(carve.array<S>(size.batch * size.width)),
        bytes(carve.bytes()) {}
};

}  // namespace

int64_t workspace_bytes(const MetaEmbeddingForward& p, Device device) {
  int64_t bytes = 0;
  with_element(p.dtype,
               [&](auto s) { bytes = Forward<decltype(s)>(Carver(nullptr), p, device).bytes; });
  return bytes;
}

void enqueue(const MetaEmbeddingForward& p, Queue& queue) {
  const int64_t B = p.size.batch, D = p.size.width;
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    using T = Acc<S>;
    Forward<S> work(Carver(queue.workspace), p, queue.device);
    BankForward<S, true, true>& bank = work.bank;
    const S* x = rows_of<S>(p.x);
    bank.precision = p.precision;
    bank.x = x;
    bank.keys = rows_of<S>(p.keys);
    bank.bias = rows_of<S>(p.key_bias);
    bank.memory = rows_of<S>(p.memory);
    bank.run(queue, p.nearest);
    product<S>(queue, p.precision, B, D, D, plain(x, D),
               transposed(rows_of<S>(p.selector_weight), D), work.gate, D);
    const Finish<S> finish{x,
                           bank.memory,
                           rows_of<S>(p.selector_bias),
                           work.gate,
                           bank.max,
                           bank.sum,
                           bank.recalled,
                           bank.distance2,
                           static_cast<T>(p.scale),
                           static_cast<T>(p.eps),
                           p.size.classes,
                           D,
                           rows_of<S>(p.embedding),
                           rows_of<S>(p.memory_feature),
                           rows_of<S>(p.selector),
                           rows_of<T>(p.distance),
                           rows_of<T>(p.lse),
                           p.nearest};
    launch(queue, finish_embedding_kernel<S>, blocks_of(B), finish);
  });
}

int64_t workspace_bytes(const MetaEmbeddingBackward& p, Device device) {
  int64_t bytes = 0;
  with_element(p.dtype, [&](auto s) {
    bytes = Backward<decltype(s)>(Carver(nullptr), p.size, device).bytes;
  });
  return bytes;
}

void enqueue(const MetaEmbeddingBackward& p, Queue& queue) {
  const int64_t B = p.size.batch, D = p.size.width;
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    using T = Acc<S>;
    if (B == 0) {
      set_zero(queue, p.grad_selector_weight, D * D);
      set_zero(queue, p.grad_selector_bias, D);
      return AttentionBackward<S>::clear(queue, p);
    }
    const Backward<S> work(Carver(queue.workspace), p.size, queue.device);
    const S *x = rows_of<S>(p.x), *recalled = rows_of<S>(p.memory_feature);
    const Gate<S> gate{rows_of<S>(p.grad_embedding),
                       rows_of<S>(p.grad_memory_feature),
                       rows_of<S>(p.grad_selector),
                       rows_of<T>(p.grad_distance),
                       x,
                       rows_of<S>(p.memory),
                       recalled,
                       rows_of<S>(p.selector),
                       rows_of<T>(p.distance),
                       p.nearest,
                       static_cast<T>(p.scale),
                       static_cast<T>(p.eps),
                       p.size.classes,
                       D,
                       work.grad_recalled,
                       work.grad_gate,
                       work.grad_x,
                       work.bank.delta,
                       work.pull};
    launch(queue, gate_backward_kernel<S>, blocks_of(B), gate);

    work.bank.run(queue, p, work.grad_recalled, work.grad_x, true);

    product<S>(queue, p.precision, B, D, D, plain(work.grad_gate, D),
               plain(rows_of<S>(p.selector_weight), D), work.grad_x, D, true);
    product<S>(queue, p.precision, D, D, B, transposed(work.grad_gate, D), plain(x, D),
               rows_of<S>(p.grad_selector_weight), D);
    const int64_t parts = div_up(B, kGradientRows), column_blocks = div_up(D, kThreads);
    launch(queue, column_sums_kernel<S>, blocks_of(parts * column_blocks), work.grad_gate, B, D,
           column_blocks, work.sums);
    launch(queue, add_parts_kernel<S, T>, blocks_of(D, kThreads), work.sums, parts, D, D,
           rows_of<S>(p.grad_selector_bias));

    const Winners<S> winners{x,
                             rows_of<S>(p.memory),
                             p.nearest,
                             work.pull,
                             work.grad_x,
                             rows_of<S>(p.grad_x),
                             rows_of<S>(p.grad_memory),
                             B,
                             p.size.classes,
                             D};
    launch(queue, winners_kernel<S>, blocks_of(B), winners);
  });
}

}  // namespace oltr::cuda
