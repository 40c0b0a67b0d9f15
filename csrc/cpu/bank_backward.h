// Gradients through one pass over the class bank, recomputed tile by tile.
//
// A task owns a part of the bank: it writes the gradients of its rows once, without atomics. The
// gradient of x is the sum of the parts' contributions, added in their order.
//
// With logits S = s_c (keys_c . x_r) + b_c, P = exp(S - lse) and G the gradient of the logits,
//   attention      G = P (M_c . g_r - delta_r),  g = grad of the recalled feature, delta_r = g_r . o_r
//   cross-entropy  G = g_r (P - (1 - a) [c = target_r] - a u_c),  u uniform over possible classes
//   given          G = grad_logits[r, c]
// and then  grad_keys_c = sum_r G x_r,  grad_bias_c = sum_r G,  grad_memory_c = sum_r P g_r,
//           grad_x_r = sum_c G s_c keys_c.
// With s_c = scale / |keys_c|, grad_keys is projected off keys_c:
//   grad_keys_c = s_c (h - k (k . h)),  h = sum_r G x_r,  k = keys_c / |keys_c|.
#pragma once

#include "cpu/bank_forward.h"
#include "cpu/output.h"

namespace oltr {
namespace OLTR_ISA {

enum class LogitGradient { kAttention, kCrossEntropy, kGiven };

template <class M>
struct BankBackward {
  using T = typename M::Acc;
  Sizes size;
  LogitGradient kind;
  Matrix x;     // (B,D)
  Matrix keys;  // (C,D)
  LogitRule<T> logits;
  const T* lse = nullptr;  // (B) all kinds but kGiven
  // attention
  Matrix memory;             // (C,D)
  Matrix grad_recalled;      // (B,D)
  const T* delta = nullptr;  // (B)
  // cross-entropy
  const T* grad_loss = nullptr;     // (B), 0 for ignored rows
  const int64_t* target = nullptr;  // (B)
  T smoothing = 0;                  // a, and
  T uniform = 0;                    // u = 1 / number of classes whose log prior is finite
  // given
  Matrix grad_logits;  // (B,C)
  // out
  T* grad_x = nullptr;          // (B,D), overwritten
  MutableMatrix grad_keys;      // (C,D)
  MutableMatrix grad_key_bias;  // (C) optional
  MutableMatrix grad_memory;    // (C,D) optional
};

template <class M>
struct BankGradient {
  using T = typename M::Acc;
  static constexpr int L = Lanes<T>::n;
  const BankBackward<M>& p;
  bool attention, given;
  Plan plan;
  // Whether one block is the whole batch: then sums of the bank's rows are whole after one product, and
  // go out a few rows at a time.
  bool at_once;
  Layout<M> layout;
  RowBlocks<M> x, g;
  Buffer<T> lse, row;  // (padded B); `row` is delta or grad_loss
  Buffer<T> grad_x;    // (parts, B, padded D)

  OLTR_INLINE BankGradient(const BankBackward<M>& backward, const Parallel& parallel)
      : p(backward),
        attention(p.kind == LogitGradient::kAttention),
        given(p.kind == LogitGradient::kGiven),
        plan(make_plan(p.size.batch, p.size.classes, p.size.width, sizeof(T), M::cut)),
        at_once(M::out_rows > 0 && p.size.batch > 0 && p.size.batch <= plan.row_block),
        layout(p.size.width, {p.keys, p.memory}),
        x(p.x, p.size.batch, p.size.width, plan.row_block, !given, true, parallel),
        g(p.grad_recalled, attention ? p.size.batch : 0, p.size.width, plan.row_block, true,
          p.grad_memory.data != nullptr, parallel),
        lse(padded(p.size.batch)),
        row(padded(p.size.batch)),
        grad_x(plan.splits_backward * padded(p.size.batch) * layout.interleaved_row) {
    if (given) return;
    const int64_t B = p.size.batch;
    const T* from = attention ? p.delta : p.grad_loss;
    for (int64_t r = 0; r < padded(B); ++r) {
      lse[r] = r < B ? p.lse[r] : std::numeric_limits<T>::infinity();
      row[r] = r < B ? from[r] : T(0);
    }
  }

  // What a task stages of the bank, its scores and the gradients of its rows.
  struct Stage {
    Buffer<T> key_rows, interleaved_rows, memory_rows, probability, gradient, words, bias,
        grad_keys, grad_memory;
    TileLogit<T> logit;
    const T *keys, *memory = nullptr;  // the tile, staged or in place
    View<M, const T> interleaved;
    Ahead next_keys, next_memory;  // the tile after this one
    OLTR_INLINE Stage(const BankGradient& pass, int64_t tile)
        : key_rows(pass.layout.natural(tile)),
          interleaved_rows(pass.layout.interleaved(tile)),
          memory_rows(pass.attention ? pass.layout.natural(tile) : 0),
          probability(round_up(tile, M::row_unit) * pass.plan.row_block),
          gradient(round_up(tile, M::row_unit) * pass.plan.row_block),
          words(M::scratch(tile, pass.plan.row_block)),
          bias(tile),
          grad_keys(pass.sums(tile)),
          grad_memory(pass.p.grad_memory.data != nullptr && !pass.at_once ? pass.sums(tile) : 0),
          logit(tile) {}
  };

  static OLTR_INLINE View<M> scores(const Buffer<T>& data, int64_t n, int64_t lanes) {
    return view<M>(data.data(), round_up(n, M::row_unit), lanes);
  }

  // G of one tile for one block of rows, and P where it has one.
  OLTR_INLINE void recompute(Stage& s, int64_t c0, int64_t n, int64_t block) const {
    const int64_t lanes = x.width(block), row0 = x.first(block), count = x.count(block);
    const View<M> probability = scores(s.probability, n, lanes);
    const View<M> gradient = scores(s.gradient, n, lanes);
    product<M>(n, lanes, layout.words, Operand<T>{s.keys, layout.natural_row, 1}, x.columns(block),
               probability, false, s.next_keys);
    if (attention)
      product<M>(n, lanes, layout.words, Operand<T>{s.memory, layout.natural_row, 1},
                 g.columns(block), gradient, false, s.next_memory);
    for (int64_t r = 0; r < lanes; r += L) {
      const Vec<T> log_sum = load<T>(lse.data() + row0 + r),
                   factor = load<T>(row.data() + row0 + r);
      for (int64_t c = 0; c < n; ++c) {
        T* at = probability.at(c, r);
        T* to = gradient.at(c, r);
        const Vec<T> prob = exp_lanes(s.logit(c, load<T>(at)) - log_sum);
        store<T>(at, prob);
        if (attention) {
          store<T>(to, prob * (load<T>(to) - factor));
          continue;
        }
        const bool possible = p.logits.bias == nullptr || std::isfinite(p.logits.bias[c0 + c]);
        const T smooth = possible ? p.smoothing * p.uniform : T(0);
        store<T>(to, factor * (prob - smooth));
      }
    }
    for (int64_t r = 0; !attention && r < count; ++r) {
      const int64_t c = p.target[row0 + r] - c0;
      if (c >= 0 && c < n) *gradient.at(c, r) -= row[row0 + r] * (1 - p.smoothing);
    }
  }

  // G as it was given, transposed.
  OLTR_INLINE void read(Stage& s, int64_t c0, int64_t n, int64_t block) const {
    const int64_t lanes = x.width(block), count = x.count(block), C = p.size.classes;
    const View<M> gradient = scores(s.gradient, n, lanes);
    const bool direct = p.grad_logits.dtype == NativeDtype<T>::value;
    T* lines = s.probability.data();
    for (int64_t r = 0; !direct && r < count; ++r)
      convert_in(p.grad_logits.data, p.grad_logits.dtype, (x.first(block) + r) * C + c0, n,
                 lines + r * n);
    const T* from =
        direct ? static_cast<const T*>(p.grad_logits.data) + x.first(block) * C + c0 : lines;
    const int64_t from_row = direct ? C : n, step = M::panel > 0 ? M::panel : lanes;
    for (int64_t r = 0; r < lanes; r += step) {
      const int64_t live = clamp(count - r, 0, step);
      transpose(from + r * from_row, from_row, live, n, gradient.at(0, r), gradient.row);
      for (int64_t c = 0; c < n; ++c) fill(gradient.at(c, r) + live, step - live, T(0));
    }
  }

  // Numbers that the sums of a tile take until they go out.
  OLTR_INLINE int64_t sums(int64_t tile) const {
    const int64_t rows = at_once && M::out_rows < tile ? M::out_rows : tile;
    return round_up(rows, M::row_unit) * layout.interleaved_row;
  }

  // Adds one block's share to the gradients of n rows of the bank.
  OLTR_INLINE void add_rows(Stage& s, int64_t c0, int64_t n, int64_t block, Operand<T> left,
                            View<M, const T> right, const Buffer<T>& sums, bool projected,
                            Output& out, int64_t end, Ahead& next) const {
    const int64_t deep = depth<M>(x.count(block)), step = at_once ? M::out_rows : n;
    for (int64_t i = 0; i < n; i += step) {
      const int64_t live = n - i < step ? n - i : step;
      product<M>(live, layout.full, deep, {left.data + i * left.row, left.row, left.col}, right,
                 plain<M>(sums.data(), layout.interleaved_row), block > 0, next);
      if (!at_once) continue;
      if (projected) project(s, c0, i, live);
      out.write(sums.data(), layout.interleaved_row, c0 + i, live, end);
    }
  }

  // Adds one block's share to the gradients of the tile's rows and of x.
  OLTR_INLINE void apply(Stage& s, int64_t c0, int64_t n, int64_t block, T* part_grad_x,
                         bool first_tile, Output& keys, Output& memory, int64_t end) const {
    const int64_t lanes = x.width(block), count = x.count(block), width = layout.full;
    const View<M> gradient = scores(s.gradient, n, lanes);
    for (int64_t c = 0; p.grad_key_bias.data != nullptr && c < n; ++c) {
      Vec<T> sum = {};
      for (int64_t r = 0; r < lanes; r += L) sum += load<T>(gradient.at(c, r));
      s.bias[c] = (block > 0 ? s.bias[c] : T(0)) + sum_lanes<T>(sum);
    }
    add_rows(s, c0, n, block, M::across(gradient, n, lanes, s.words.data()), x.rows(block),
             s.grad_keys, p.logits.cosine, keys, end, s.next_keys);
    if (p.grad_memory.data != nullptr)
      add_rows(s, c0, n, block,
               M::across(scores(s.probability, n, lanes), n, lanes, s.words.data()), g.rows(block),
               at_once ? s.grad_keys : s.grad_memory, false, memory, end, s.next_memory);
    for (int64_t r = 0; p.logits.cosine && r < lanes; r += L)
      for (int64_t c = 0; c < n; ++c)
        store<T>(gradient.at(c, r), load<T>(gradient.at(c, r)) * s.logit.scale[c]);
    const int64_t row = layout.interleaved_row;
    product<M>(count, width, depth<M>(n), M::down(gradient, n, lanes, depth<M>(n), s.words.data()),
               s.interleaved, plain<M>(part_grad_x + x.first(block) * row, row), !first_tile,
               s.next_keys);
  }

  // From the direction's gradient to that of keys, which the logits see only normalised: n rows of the
  // tile at c0, from its row `first` on.
  OLTR_INLINE void project(Stage& s, int64_t c0, int64_t first, int64_t n) const {
    const int64_t D = p.size.width;
    const Buffer<T> scratch(D);
    for (int64_t c = first; c < first + n; ++c) {
      T* h = s.grad_keys.data() + (c - first) * layout.interleaved_row;
      const T* key = rows(p.keys, c0 + c, 1, D, scratch.data());
      const T norm2 = dot(key, key, D);
      const T along = norm2 > 0 ? dot(key, h, D) / norm2 : T(0);
      for (int64_t d = 0; d < D; ++d) h[d] = s.logit.scale[c] * (h[d] - along * key[d]);
    }
  }

  OLTR_INLINE void run(int64_t part) const {
    const int64_t B = p.size.batch, D = p.size.width;
    const Range range = part_of(part, plan.splits_backward, p.size.classes, M::cut.class_unit);
    // The more rows of the bank at a time, the less often the gradient of x passes by; where sums go
    // out at once, twice as many fit the second cache.
    const bool more = at_once && range.size() >= 4 * plan.class_tile;
    const int64_t tile =
        even_tile(range.size(), (more ? 2 : 1) * plan.class_tile, M::cut.class_unit);
    T* part_grad_x = grad_x.data() + part * padded(B) * layout.interleaved_row;
    const typename M::Session session;
    Stage s(*this, tile);
    if (B == 0) {
      fill(s.bias.data(), tile, T(0));
      fill(s.grad_keys.data(), sums(tile), T(0));
      if (p.grad_memory.data != nullptr) fill(s.grad_memory.data(), sums(tile), T(0));
    }
    Output keys(p.grad_keys, p.size.classes, D), memory(p.grad_memory, p.size.classes, D);
    for (int64_t c0 = range.begin; c0 < range.end; c0 += tile) {
      const int64_t n = range.end - c0 < tile ? range.end - c0 : tile;
      s.keys = stage_natural(layout, p.keys, c0, n, s.key_rows.data());
      s.interleaved = interleave(layout, s.keys, n, s.interleaved_rows.data(), 0, depth<M>(n));
      p.logits.stage(layout, s.keys, c0, n, s.logit);
      if (attention) s.memory = stage_natural(layout, p.memory, c0, n, s.memory_rows.data());
      const int64_t left = range.end - c0 - n < tile ? range.end - c0 - n : tile;
      s.next_keys = ahead_of(p.keys, c0 + n, left, D);
      s.next_memory = ahead_of(p.memory, c0 + n, left, D);
      for (int64_t block = 0; block < div_up(B, plan.row_block); ++block) {
        if (given)
          read(s, c0, n, block);
        else
          recompute(s, c0, n, block);
        apply(s, c0, n, block, part_grad_x, c0 == range.begin, keys, memory, range.end);
      }
      if (!at_once) {
        if (p.logits.cosine && B > 0) project(s, c0, 0, n);
        keys.write(s.grad_keys.data(), layout.interleaved_row, c0, n, range.end);
        if (p.grad_memory.data != nullptr)
          memory.write(s.grad_memory.data(), layout.interleaved_row, c0, n, range.end);
      }
      if (p.grad_key_bias.data != nullptr)
        convert_out(s.bias.data(), n, p.grad_key_bias.data, p.grad_key_bias.dtype, c0);
    }
  }

  OLTR_INLINE void merge(int64_t r) const {
    const int64_t B = p.size.batch, D = p.size.width;
    T* out = p.grad_x + r * D;
    fill(out, D, T(0));
    for (int64_t part = 0; part < plan.splits_backward; ++part)
      add_scaled(out, T(1), grad_x.data() + (part * padded(B) + r) * layout.interleaved_row, D);
  }
};

template <class M>
static void bank_backward(const BankBackward<M>& p, const Parallel& parallel) {
  const BankGradient<M> pass(p, parallel);
  Output(p.grad_keys, p.size.classes, p.size.width).prepare();
  Output(p.grad_memory, p.size.classes, p.size.width).prepare();
  parallel_tasks(parallel, pass.plan.splits_backward, [&](int64_t part) { pass.run(part); });
  parallel_ranges(parallel, p.size.batch, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) pass.merge(r);
  });
}

}  // namespace OLTR_ISA
}  // namespace oltr
