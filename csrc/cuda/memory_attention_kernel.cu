// memory_attention: out = softmax(x keys' + key_bias) memory, lse = log-sum-exp of the logits.
#include "cuda/bank_backward.h"
#include "cuda/bank_forward.h"

namespace oltr::cuda {
namespace {

// out = o / l, lse = m + log l. A block a row.
template <class S>
__global__ void finish_attention_kernel(const Acc<S>* max, const Acc<S>* sum,
                                        const Acc<S>* recalled, int64_t width, S* out,
                                        Acc<S>* lse) {
  const int64_t r = blockIdx.x;
  const Acc<S> l = sum[r];
  for (int64_t d = threadIdx.x; d < width; d += kThreads)
    out[r * width + d] = narrow<S>(recalled[r * width + d] / l);
  if (threadIdx.x == 0) lse[r] = max[r] + log(l);
}

template <class S>
struct Backward {
  AttentionBackward<S> bank;
  Acc<S>* grad_x;
  int64_t bytes;
  Backward(Carver carve, Sizes size, Device device)
      : bank(carve, size, device),
        grad_x(carve.array<Acc<S>>(size.batch * size.width)),
        bytes(carve.bytes()) {}
};

}  // namespace

int64_t workspace_bytes(const MemoryAttentionForward& p, Device device) {
  Carver carve(nullptr);
  with_element(p.dtype, [&](auto s) {
    BankForward<decltype(s), true, false>(carve, p.size, can_fuse(p.size, {p.x, p.keys, p.memory}),
                                          device);
  });
  return carve.bytes();
}

void enqueue(const MemoryAttentionForward& p, Queue& queue) {
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    Carver carve(queue.workspace);
    BankForward<S, true, false> bank(carve, p.size, can_fuse(p.size, {p.x, p.keys, p.memory}),
                                     queue.device);
    bank.precision = p.precision;
    bank.x = rows_of<S>(p.x);
    bank.keys = rows_of<S>(p.keys);
    bank.bias = rows_of<S>(p.key_bias);
    bank.memory = rows_of<S>(p.memory);
    bank.run(queue, nullptr);
    launch(queue, finish_attention_kernel<S>, blocks_of(p.size.batch), bank.max, bank.sum,
           bank.recalled, p.size.width, rows_of<S>(p.out), rows_of<Acc<S>>(p.lse));
  });
}

int64_t workspace_bytes(const MemoryAttentionBackward& p, Device device) {
  int64_t bytes = 0;
  with_element(p.dtype, [&](auto s) {
    bytes = Backward<decltype(s)>(Carver(nullptr), p.size, device).bytes;
  });
  return bytes;
}

void enqueue(const MemoryAttentionBackward& p, Queue& queue) {
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    if (p.size.batch == 0) return AttentionBackward<S>::clear(queue, p);
    const Backward<S> work(Carver(queue.workspace), p.size, queue.device);
    const S* grad = rows_of<S>(p.grad_out);
    launch(queue, row_dots_kernel<S>, blocks_of(p.size.batch, kWarps), grad, rows_of<S>(p.out),
           p.size.batch, p.size.width, work.bank.delta);
    work.bank.run(queue, p, grad, work.grad_x, false);
    const int64_t n = p.size.batch * p.size.width;
    launch(queue, narrow_kernel<S>, blocks_of(n, kThreads), work.grad_x, n, rows_of<S>(p.grad_x));
  });
}

}  // namespace oltr::cuda
