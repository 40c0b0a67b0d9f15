// Gradients through one pass over the class bank, recomputed chunk by chunk. A chunk's own gradients
// are written once, without atomics; the gradient of x is the sum of the chunks' shares in order.
//
// With logits S_rc = q_r s_c (keys_c . x_r) + b_c and G their gradient, a rule gives, for each of
// them, G q s (and P for the gradient of the memory):
//   attention      G = P (M_c . g_r - delta_r),  g = grad of the recalled feature, delta_r = g_r . o_r
//   cross-entropy  G = g_r (P - (1 - a) [c = target_r] - a u_c),  u uniform over possible classes
//   given          G = grad_logits[r, c]
#pragma once

#include <limits>

#include "cuda/rows.h"

namespace oltr::cuda {

// A rule reads what belongs to a column once: column(c), then rule(row, c, that, place in the chunk).
template <class S>
struct AttentionGradient {
  using T = Acc<S>;
  const T *logits, *along;  // (B, stride) x keys', g memory'
  const S* bias;            // (count)
  const T *lse, *delta;     // (B)
  S* weights;               // (B, stride) P; may be absent

  __device__ T column(int64_t c) const { return widen(read(bias + c)); }
  __device__ T operator()(int64_t r, int64_t, T offset, int64_t at) const {
    const T weight = exp(read(logits + at) + offset - read(lse + r));
    if (weights != nullptr) weights[at] = narrow<S>(weight);
    return weight * (read(along + at) - read(delta + r));
  }
};

template <class S>
struct CrossEntropyGradient {
  using T = Acc<S>;
  const T* products;                    // (B, stride) v weight'
  const T *row, *scale;                 // (B) q, (count) s
  const T* prior;                       // (count) log prior; may be absent
  const T *lse, *grad_loss;             // (B)
  const int64_t* target;                // (B)
  const T* uniform;                     // () u, where there is smoothing
  T smoothing;                          // a
  int64_t first, labels, ignore_index;  // labels: those that there are

  struct Column {
    T scale, prior, share;
  };
  __device__ Column column(int64_t c) const {
    const T p = prior == nullptr ? T(0) : read(prior + c);
    const bool shared = smoothing > 0 && p > Identity<T>::max;
    return {read(scale + c), p, shared ? smoothing * read(uniform) : T(0)};
  }
  __device__ T operator()(int64_t r, int64_t c, const Column& column, int64_t at) const {
    constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
    const int64_t own = read(target + r);
    const T both = read(row + r) * column.scale;
    T g = exp(read(products + at) * both + column.prior - read(lse + r)) - column.share;
    if (first + c == own) g -= 1 - smoothing;
    g = g * read(grad_loss + r) * both;
    if (own < 0 || own >= labels) g = kNan;
    return own == ignore_index ? T(0) : g;
  }
};

template <class S>
struct GivenGradient {
  using T = Acc<S>;
  const S* grad_logits;  // (B,C) from this chunk's first column on
  int64_t classes;
  const T *row, *scale;  // (B) q, (count) s

  __device__ T column(int64_t c) const { return read(scale + c); }
  __device__ T operator()(int64_t r, int64_t c, T scale_c, int64_t) const {
    return widen(read(grad_logits + r * classes + c)) * read(row + r) * scale_c;
  }
};

// gradient[r, c] = rule(r, c); and for the bias, sums[part, c] = their sum over the block's rows, the
// parts `sums_stride` apart.
// A block has kGradientRows x kGradientColumns of them, its threads a column and a share of the rows.
template <class S, class Rule>
__global__ void logit_gradient_kernel(Rule rule, int64_t rows, int64_t count, int64_t column_blocks,
                                      int64_t stride, S* gradient, Acc<S>* sums,
                                      int64_t sums_stride) {
  using T = Acc<S>;
  OLTR_DYNAMIC_SHARED(shared);
  constexpr int64_t kShares = kThreads / kGradientColumns;
  const int64_t part = blockIdx.x / column_blocks;
  const int64_t column = threadIdx.x % kGradientColumns, share = threadIdx.x / kGradientColumns;
  const int64_t c = blockIdx.x % column_blocks * kGradientColumns + column;
  T sum = 0;
  if (c < count) {
    const auto mine = rule.column(c);
    const int64_t last = (part + 1) * kGradientRows < rows ? (part + 1) * kGradientRows : rows;
    OLTR_UNROLL(8)
    for (int64_t r = part * kGradientRows + share; r < last; r += kShares) {
      const int64_t at = r * stride + c;
      const T g = rule(r, c, mine, at);
      gradient[at] = narrow<S>(g);
      sum += g;
    }
  }
  if (sums == nullptr) return;
  T* shares = reinterpret_cast<T*>(shared);
  shares[threadIdx.x] = sum;
  __syncthreads();
  if (share != 0 || c >= count) return;
  for (int64_t i = 1; i < kShares; ++i) sum += shares[i * kGradientColumns + column];
  sums[part * sums_stride + c] = sum;
}

template <class S, class Rule>
void logit_gradient(Queue& queue, const Rule& rule, int64_t rows, int64_t count, int64_t stride,
                    S* gradient, Acc<S>* sums = nullptr, int64_t sums_stride = 0) {
  const int64_t column_blocks = div_up(count, kGradientColumns);
  Launch l = blocks_of(div_up(rows, kGradientRows) * column_blocks);
  l.shared_bytes = kThreads * static_cast<int64_t>(sizeof(Acc<S>));
  launch(queue, logit_gradient_kernel<S, Rule>, l, rule, rows, count, column_blocks, stride,
         gradient, sums, sums_stride);
}

// memory_attention's backward, in two parts of meta_embedding's and on its own.
template <class S>
struct AttentionBackward {
  using T = Acc<S>;
  Sizes size;
  int64_t chunk, held;  // classes; classes whose sums are held until they are added up
  T *logits, *along, *delta, *sums;
  S *weights, *gradient;

  AttentionBackward(Carver& carve, Sizes sizes, Device device) : size(sizes) {
    const int64_t B = size.batch;
    chunk = backward_chunk(size, {sizeof(S), sizeof(T)}, device.chunk_bytes);
    logits = carve.array<T>(B * chunk);
    along = carve.array<T>(B * chunk);
    weights = carve.array<S>(B * chunk);
    gradient = carve.array<S>(B * chunk);
    delta = carve.array<T>(B);
    held = held_sums(size, chunk, sizeof(T), device.chunk_bytes);
    sums = carve.array<T>(div_up(B, kGradientRows) * held);
  }

  // `p` holds x, keys, key_bias, memory, lse and where their gradients go; `grad` is the gradient of
  // the recalled feature, and `delta` its product with it, row by row, is there already. grad_x (B,D)
  // is overwritten, or added to where `add`.
  template <class Params>
  void run(Queue& queue, const Params& p, const S* grad, T* grad_x, bool add) const {
    const int64_t B = size.batch, C = size.classes, D = size.width;
    const S *x = rows_of<S>(p.x), *bias = rows_of<S>(p.key_bias);
    const bool memory_grad = p.grad_memory.data != nullptr;
    for (int64_t c0 = 0; c0 < C; c0 += chunk) {
      const int64_t n = C - c0 < chunk ? C - c0 : chunk;
      const S *keys = rows_of<S>(p.keys, c0, D), *memory = rows_of<S>(p.memory, c0, D);
      product<S>(queue, p.precision, B, n, D, plain(x, D), transposed(keys, D), logits, chunk);
      product<S>(queue, p.precision, B, n, D, plain(grad, D), transposed(memory, D), along, chunk);
      const AttentionGradient<S> rule{
          logits, along, bias + c0, rows_of<T>(p.lse), delta, memory_grad ? weights : nullptr};
      logit_gradient(queue, rule, B, n, chunk, gradient, sums + c0 % held, held);
      if ((c0 + n) % held == 0 || c0 + n == C) {
        const int64_t begin = c0 / held * held, count = c0 + n - begin;
        launch(queue, add_parts_kernel<S, T>, blocks_of(count, kThreads), sums,
               div_up(B, kGradientRows), held, count, rows_of<S>(p.grad_key_bias, begin, 1));
      }
      product<S>(queue, p.precision, n, D, B, transposed(gradient, chunk), plain(x, D),
                 rows_of<S>(p.grad_keys, c0, D), D);
      if (memory_grad)
        product<S>(queue, p.precision, n, D, B, transposed(weights, chunk), plain(grad, D),
                   rows_of<S>(p.grad_memory, c0, D), D);
      product<S>(queue, p.precision, B, D, n, plain(gradient, chunk), plain(keys, D), grad_x, D,
                 add || c0 > 0);
    }
  }

  // An empty batch leaves nothing but zeros.
  template <class Params>
  static void clear(Queue& queue, const Params& p) {
    const int64_t C = p.size.classes, D = p.size.width;
    set_zero(queue, p.grad_keys, C * D);
    set_zero(queue, p.grad_key_bias, C);
    set_zero(queue, p.grad_memory, C * D);
  }
};

// What of v's gradient lies along v, as a multiple of v, from |v|^2 and v . h.
// The cosine ignores a class's length, so nothing along it is left: k (k . h), k = v / |v|.
template <class T>
struct AlongDirection {
  __device__ T operator()(T squares, T dot) const { return squares == T(0) ? T(0) : dot / squares; }
};
// Through v -> v / (1 + |v|), with h = sum_c G s_c keys_c / (1 + |v|): v (v . h) / (|v| (1 + |v|)).
template <class T>
struct AlongSquashed {
  __device__ T operator()(T squares, T dot) const {
    const T norm = sqrt(squares);
    return norm == T(0) ? T(0) : dot / (norm * (1 + norm));
  }
};
// out = h - along(|v|^2, v . h) v. A block a row.
template <class S, class Along>
__global__ void take_off_kernel(const Acc<S>* h, const S* v, int64_t width, Along along, S* out) {
  using T = Acc<S>;
  OLTR_DYNAMIC_SHARED(shared);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * width;
  const T squares = block_sum<T>(width, shared, [&](int64_t i) {
    const T a = widen(v[at + i]);
    return a * a;
  });
  const T dot =
      block_sum<T>(width, shared, [&](int64_t i) { return widen(v[at + i]) * h[at + i]; });
  const T share = along(squares, dot);
  for (int64_t i = threadIdx.x; i < width; i += kThreads)
    out[at + i] = narrow<S>(h[at + i] - share * widen(v[at + i]));
}

// What the two cosine ops share.
template <class S>
struct CosineBackward {
  using T = Acc<S>;
  Sizes size;
  bool recompute;  // the logits
  int64_t chunk;
  T *products, *row, *column, *grad_v, *grad_direction;
  S* gradient;

  CosineBackward(Carver& carve, Sizes sizes, bool with_logits, Device device)
      : size(sizes), recompute(with_logits) {
    const int64_t B = size.batch, D = size.width;
    chunk = chunk_classes(size.classes,
                          static_cast<int64_t>(B * ((recompute ? sizeof(T) : 0) + sizeof(S)) +
                                               D * (2 * sizeof(S) + sizeof(T))),
                          device.chunk_bytes);
    products = carve.array<T>(recompute ? B * chunk : 0);
    gradient = carve.array<S>(B * chunk);
    row = carve.array<T>(B);
    column = carve.array<T>(chunk);
    grad_v = carve.array<T>(B * D);
    grad_direction = carve.array<T>(chunk * D);
  }

  // rule_of(first class) gives a chunk's rule, once row, column and products are enqueued.
  template <class Params, class RuleOf>
  void run(Queue& queue, const Params& p, RuleOf rule_of) const {
    const int64_t B = size.batch, C = size.classes, D = size.width;
    if (B == 0) return set_zero(queue, p.grad_weight, C * D);
    const S* v = rows_of<S>(p.v);
    row_norms(queue, v, B, D, Squash<T>(), row);
    for (int64_t c0 = 0; c0 < C; c0 += chunk) {
      const int64_t n = C - c0 < chunk ? C - c0 : chunk;
      const S* weight = rows_of<S>(p.weight, c0, D);
      row_norms(queue, weight, n, D, CosineScale<T>{static_cast<T>(p.scale)}, column);
      if (recompute)
        product<S>(queue, p.precision, B, n, D, plain(v, D), transposed(weight, D), products,
                   chunk);
      logit_gradient(queue, rule_of(c0), B, n, chunk, gradient);
      product<S>(queue, p.precision, n, D, B, transposed(gradient, chunk), plain(v, D),
                 grad_direction, D);
      launch(queue, take_off_kernel<S, AlongDirection<T>>, blocks_of(n), grad_direction, weight, D,
             AlongDirection<T>(), rows_of<S>(p.grad_weight, c0, D));
      product<S>(queue, p.precision, B, D, n, plain(gradient, chunk), plain(weight, D), grad_v, D,
                 c0 > 0);
    }
    launch(queue, take_off_kernel<S, AlongSquashed<T>>, blocks_of(B), grad_v, v, D,
           AlongSquashed<T>(), rows_of<S>(p.grad_v));
  }
};

}  // namespace oltr::cuda
