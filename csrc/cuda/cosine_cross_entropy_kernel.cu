// cosine_cross_entropy: with logits z_rc = scale u_r . w_c / |w_c| + log_prior_c and smoothing a,
//   loss_r = lse_r - (1 - a) z_r,target - a mean_c z_rc
// where the mean runs over classes of finite log prior. Of a shard see common/params.h.
#include "cuda/bank_backward.h"
#include "cuda/bank_forward.h"
#include "cuda/fused_entropy.h"

namespace oltr::cuda {
namespace {

// One row's softmax state, the target's logit and the sum of the possible logits. A block a row.
template <class S>
struct Entropy {
  const Acc<S>*products, *row, *column, *prior;  // (B, stride) (B) (count) (count) may be absent
  const int64_t* target;
  Acc<S>*max, *sum, *picked, *total;  // (B)
};

template <class S>
__global__ void entropy_kernel(Entropy<S> p, Chunk chunk) {
  using T = Acc<S>;
  OLTR_DYNAMIC_SHARED(shared);
  const int64_t r = blockIdx.x, own = p.target[r] - chunk.first;
  const T* products = p.products + r * chunk.stride;
  const T scale = p.row[r];
  const auto logit = [&](T product, int64_t c) {
    const T z = product * scale * read(p.column + c);
    return p.prior == nullptr ? z : z + read(p.prior + c);
  };
  const auto for_each_logit = [&](auto f) {
    for_each_pack(chunk.count, [&](int64_t c, int left) {
      const Pack<T, kColumns> dots = load_pack<kColumns>(products + c, left);
      for (int j = 0; j < kColumns; ++j)
        if (j < left) f(logit(dots.v[j], c + j));
    });
  };
  T m = chunk.opens ? Identity<T>::max : p.max[r], l = chunk.opens ? Identity<T>::sum : p.sum[r];
  T high = Identity<T>::max, total = 0;
  for_each_logit([&](T z) {
    high = Largest()(high, z);
    if (z > Identity<T>::max) total += z;
  });
  high = Largest()(m, block_reduce(high, Largest(), shared));
  total = block_reduce(total, Add(), shared);
  T sum = 0;
  for_each_logit([&](T z) { sum += static_cast<T>(exp(z - high)); });
  sum = block_reduce(sum, Add(), shared);
  T keep, take;
  merge_softmax(m, l, high, sum, keep, take, [](T a) { return static_cast<T>(exp(a)); });
  if (threadIdx.x != 0) return;
  if (own >= 0 && own < chunk.count) p.picked[r] = logit(products[own], own);
  p.max[r] = m;
  p.sum[r] = l;
  p.total[r] = chunk.opens ? total : p.total[r] + total;
}

// Classes that a block counts: a million must not wait for one block.
constexpr int64_t kCounted = 4 * kThreads;

// parts[b] = how many of the b-th kCounted classes are possible.
template <class T>
__global__ void possible_kernel(const T* prior, int64_t classes, int64_t* parts) {
  OLTR_DYNAMIC_SHARED(shared);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kCounted, left = classes - first;
  int64_t count = 0;
  OLTR_UNROLL(8)
  for (int64_t c = threadIdx.x; c < (left < kCounted ? left : kCounted); c += kThreads)
    count += prior == nullptr || read(prior + first + c) > Identity<T>::max;
  count = block_reduce(count, Add(), shared);
  if (threadIdx.x == 0) parts[blockIdx.x] = count;
}
// u = 1 / the number of possible classes, those of other shards among them. One block.
template <class T>
__global__ void uniform_kernel(const int64_t* parts, int64_t n, int64_t others, T* uniform) {
  OLTR_DYNAMIC_SHARED(shared);
  int64_t count = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) count += read(parts + i);
  count = block_reduce(count, Add(), shared);
  count += others;
  if (threadIdx.x == 0) *uniform = count > 0 ? 1 / static_cast<T>(count) : T(0);
}
template <class T>
struct Uniform {
  int64_t blocks;
  int64_t* parts;
  T* share;  // u
  Uniform(Carver& carve, int64_t classes)
      : blocks(div_up(classes, kCounted)),
        parts(carve.array<int64_t>(blocks)),
        share(carve.array<T>(1)) {}
  void run(Queue& queue, const T* prior, int64_t classes, int64_t others) const {
    launch(queue, possible_kernel<T>, blocks_of(blocks), prior, classes, parts);
    others = others == kNoShard ? 0 : others;
    launch(queue, uniform_kernel<T>, blocks_of(1), parts, blocks, others, share);
  }
};

// Losses and the number of rows that count. One block.
template <class T>
struct Losses {
  const T *max, *sum, *picked, *total, *uniform;
  const int64_t* target;
  int64_t rows, classes, ignore_index;
  bool whole;  // no shard
  T smoothing;
  T *loss, *lse, *counted;
};
template <class T>
__global__ void finish_entropy_kernel(Losses<T> p) {
  OLTR_DYNAMIC_SHARED(shared);
  constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
  int64_t counted = 0;
  for (int64_t r = threadIdx.x; r < p.rows; r += kThreads) {
    const int64_t own = p.target[r];
    const T lse = p.max[r] + log(p.sum[r]);
    p.lse[r] = lse;
    p.loss[r] = 0;
    if (own == p.ignore_index) continue;
    ++counted;
    p.loss[r] = kNan;
    if (own < 0 || own >= p.classes + !p.whole) continue;
    const T picked = own < p.classes ? p.picked[r] : T(0);
    p.loss[r] = (p.whole ? lse : T(0)) - (1 - p.smoothing) * picked;
    if (p.smoothing > 0) p.loss[r] -= p.smoothing * p.total[r] * *p.uniform;
  }
  counted = block_reduce(counted, Add(), shared);
  if (threadIdx.x == 0) *p.counted = static_cast<T>(counted);
}

template <class S>
struct Forward {
  using T = Acc<S>;
  FusedPlan plan{};
  int64_t chunk = 0;
  Uniform<T> uniform;
  T *products, *row, *column, *max, *sum, *picked, *total;
  int64_t bytes;
  Forward(Carver carve, const CosineCrossEntropyForward& p, Device device)
      : uniform(carve, p.size.classes) {
    const Sizes size = p.size;
    const int64_t B = size.batch;
    if (sizeof(S) == 2 && can_fuse(size, {p.v, p.weight})) plan = fused_plan(size, false, device);
    const int64_t states = plan.width > 0 ? plan.states : 1;
    max = carve.array<T>(states * B);
    sum = carve.array<T>(states * B);
    picked = carve.array<T>(states * B);
    total = carve.array<T>(states * B);
    if (plan.width == 0)
      chunk =
          chunk_classes(size.classes, static_cast<int64_t>(B * sizeof(T) + size.width * sizeof(S)),
                        device.chunk_bytes);
    products = carve.array<T>(B * chunk);
    column = carve.array<T>(chunk);
    row = carve.array<T>(chunk > 0 ? B : 0);
    bytes = carve.bytes();
  }

  void run(Queue& queue, const CosineCrossEntropyForward& p, const T* prior) const {
    const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
    const S* v = rows_of<S>(p.v);
    const T scale = static_cast<T>(p.scale);
    if constexpr (sizeof(S) == 2) {
      if (plan.width > 0)
        return fused_entropy<S>(
            queue, plan,
            {v, rows_of<S>(p.weight), prior, p.target, scale, p.label_smoothing > 0, B, C, D,
             plan.row_blocks, plan.parts, max, sum, picked, total});
    }
    row_norms(queue, v, B, D, Squash<T>(), row);
    for (int64_t c0 = 0; c0 < C; c0 += chunk) {
      const int64_t n = C - c0 < chunk ? C - c0 : chunk;
      const S* weight = rows_of<S>(p.weight, c0, D);
      row_norms(queue, weight, n, D, CosineScale<T>{scale}, column);
      product<S>(queue, p.precision, B, n, D, plain(v, D), transposed(weight, D), products, chunk);
      const Entropy<S> entropy{products, row, column, prior == nullptr ? nullptr : prior + c0,
                               p.target, max, sum,    picked,
                               total};
      launch(queue, entropy_kernel<S>, blocks_of(B), entropy, Chunk{c0, n, chunk, c0 == 0});
    }
  }
};

template <class S>
struct Backward {
  CosineBackward<S> bank;
  Uniform<Acc<S>> uniform;
  int64_t bytes;
  Backward(Carver carve, Sizes size, Device device)
      : bank(carve, size, true, device), uniform(carve, size.classes), bytes(carve.bytes()) {}
};

}  // namespace

int64_t workspace_bytes(const CosineCrossEntropyForward& p, Device device) {
  int64_t bytes = 0;
  with_element(p.dtype,
               [&](auto s) { bytes = Forward<decltype(s)>(Carver(nullptr), p, device).bytes; });
  return bytes;
}

void enqueue(const CosineCrossEntropyForward& p, Queue& queue) {
  const int64_t B = p.size.batch, C = p.size.classes;
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    using T = Acc<S>;
    const Forward<S> work(Carver(queue.workspace), p, queue.device);
    const T* prior = rows_of<T>(p.log_prior);
    if (B > 0) work.run(queue, p, prior);
    if (p.label_smoothing > 0) work.uniform.run(queue, prior, C, p.others);
    const Losses<T> losses{work.max,
                           work.sum,
                           work.picked,
                           work.total,
                           work.uniform.share,
                           p.target,
                           B,
                           C,
                           p.ignore_index,
                           p.others == kNoShard,
                           static_cast<T>(p.label_smoothing),
                           rows_of<T>(p.loss),
                           rows_of<T>(p.lse),
                           rows_of<T>(p.counted)};
    launch(queue, finish_entropy_kernel<T>, blocks_of(1), losses);
  });
}

int64_t workspace_bytes(const CosineCrossEntropyBackward& p, Device device) {
  int64_t bytes = 0;
  with_element(p.dtype, [&](auto s) {
    bytes = Backward<decltype(s)>(Carver(nullptr), p.size, device).bytes;
  });
  return bytes;
}

void enqueue(const CosineCrossEntropyBackward& p, Queue& queue) {
  with_element(p.dtype, [&](auto s) {
    using S = decltype(s);
    using T = Acc<S>;
    const Backward<S> work(Carver(queue.workspace), p.size, queue.device);
    const CosineBackward<S>& bank = work.bank;
    const T* prior = rows_of<T>(p.log_prior);
    if (p.label_smoothing > 0) work.uniform.run(queue, prior, p.size.classes, p.others);
    bank.run(queue, p, [&](int64_t first) {
      return CrossEntropyGradient<S>{bank.products,
                                     bank.row,
                                     bank.column,
                                     prior == nullptr ? nullptr : prior + first,
                                     rows_of<T>(p.lse),
                                     rows_of<T>(p.grad_loss),
                                     p.target,
                                     work.uniform.share,
                                     static_cast<T>(p.label_smoothing),
                                     first,
                                     p.size.classes + (p.others != kNoShard),
                                     p.ignore_index};
    });
  });
}

}  // namespace oltr::cuda
