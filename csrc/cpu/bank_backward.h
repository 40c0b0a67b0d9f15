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
// With `normalised`, s_c = scale / |keys_c| and grad_keys is projected off keys_c:
//   grad_keys_c = s_c (h - k (k . h)),  h = sum_r G x_r,  k = keys_c / |keys_c|.
#pragma once

#include "cpu/bank_forward.h"

namespace oltr {
namespace OLTR_ISA {

enum class LogitGradient { kAttention, kCrossEntropy, kGiven };

template <class T>
struct BankBackward {
  Sizes size;
  LogitGradient kind;
  const T* x = nullptr;          // (B,D)
  Matrix keys;                   // (C,D)
  const T* key_scale = nullptr;  // (C) optional
  const T* key_bias = nullptr;   // (C) optional
  bool normalised = false;       // key_scale holds scale / |keys_c|
  const T* lse = nullptr;        // (B) all kinds but kGiven
  // attention
  Matrix memory;                     // (C,D)
  const T* grad_recalled = nullptr;  // (B,D)
  const T* delta = nullptr;          // (B)
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

// Row blocks of a (B,D) matrix, each transposed.
template <class T>
OLTR_INLINE void transpose_all(const T* x, int64_t B, int64_t D, int64_t block, T* out,
                               const Parallel& parallel) {
  parallel_tasks(parallel, div_up(B, block), [&](int64_t i) {
    const int64_t row0 = i * block;
    transpose_block(x + row0 * D, B - row0 < block ? B - row0 : block, D, block, out + row0 * D);
  });
}

// G of one tile for one block of rows; leaves P in `logits`.
template <class T>
OLTR_INLINE void tile_gradient(const BankBackward<T>& p, int64_t c0, int64_t n, int64_t row0,
                               int64_t count, int64_t block, T* logits, T* gradient) {
  constexpr int L = Lanes<T>::n;
  for (int64_t r0 = 0; r0 < block; r0 += L) {
    const int live = static_cast<int>(clamp(count - r0, 0, L));
    const Vec<T> lse = load_first(p.lse + row0 + r0, live);
    const bool attention = p.kind == LogitGradient::kAttention;
    const Vec<T> row = load_first((attention ? p.delta : p.grad_loss) + row0 + r0, live);
    for (int64_t c = 0; c < n; ++c) {
      T* s = logits + c * block + r0;
      T* g = gradient + c * block + r0;
      const Vec<T> prob = exp_lanes(load<T>(s) - lse);
      store<T>(s, prob);
      if (attention) {
        store<T>(g, prob * (load<T>(g) - row));
        continue;
      }
      const bool possible = p.key_bias == nullptr || std::isfinite(p.key_bias[c0 + c]);
      const T smooth = possible ? p.smoothing * p.uniform : T(0);
      store<T>(g, row * (prob - smooth));
    }
    if (attention) continue;
    for (int i = 0; i < live; ++i) {
      const int64_t c = p.target[row0 + r0 + i] - c0;
      if (c >= 0 && c < n) gradient[c * block + r0 + i] -= row[i] * (1 - p.smoothing);
    }
  }
}

template <class T>
struct BackwardScratch {
  const T* xt;               // row blocks of x, transposed
  const T* grad_recalled_t;  // row blocks of grad_recalled, transposed; attention only
  T* grad_x;                 // (parts, B, D)
};

template <class T>
static void bank_backward_part(const BankBackward<T>& p, const Plan& plan,
                               const BackwardScratch<T>& shared, int64_t part) {
  const int64_t B = p.size.batch, C = p.size.classes, D = p.size.width;
  const int64_t block = plan.row_block, tile = plan.class_tile;
  const Range range = part_of(part, plan.splits_backward, C, tile);
  const bool attention = p.kind == LogitGradient::kAttention;
  const bool given = p.kind == LogitGradient::kGiven;
  T* grad_x = shared.grad_x + part * B * D;
  fill(grad_x, B * D, T(0));

  const Buffer<T> logits(tile * block), gradient(tile * block), line(tile), bias(tile);
  const Buffer<T> grad_keys(tile * D), grad_memory(p.grad_memory.data != nullptr ? tile * D : 0);
  const Buffer<T> key_rows(p.keys.dtype == NativeDtype<T>::value ? 0 : tile * D);
  const Buffer<T> memory_rows(p.memory.dtype == NativeDtype<T>::value ? 0 : tile * D);
  for (int64_t c0 = range.begin; c0 < range.end; c0 += tile) {
    const int64_t n = range.end - c0 < tile ? range.end - c0 : tile;
    const T* keys = rows(p.keys, c0, n, D, key_rows.data());
    const T* memory = attention ? rows(p.memory, c0, n, D, memory_rows.data()) : nullptr;
    fill(bias.data(), n, T(0));
    if (B == 0) {
      fill(grad_keys.data(), n * D, T(0));
      if (p.grad_memory.data != nullptr) fill(grad_memory.data(), n * D, T(0));
    }
    for (int64_t row0 = 0; row0 < B; row0 += block) {
      const int64_t count = B - row0 < block ? B - row0 : block;
      const bool more = row0 > 0;
      T* g = gradient.data();
      if (given) {
        for (int64_t r = 0; r < count; ++r) {
          convert_in(p.grad_logits.data, p.grad_logits.dtype, (row0 + r) * C + c0, n, line.data());
          for (int64_t c = 0; c < n; ++c) g[c * block + r] = line[c];
        }
      } else {
        tile_logits(keys, p.key_scale, p.key_bias, c0, n, D, shared.xt + row0 * D, block,
                    logits.data());
        if (attention)
          product(n, block, D, memory, D, int64_t{1}, shared.grad_recalled_t + row0 * D, block, g,
                  block, false);
        tile_gradient(p, c0, n, row0, count, block, logits.data(), g);
      }
      for (int64_t c = 0; c < n; ++c)
        for (int64_t r = 0; r < count; ++r) bias[c] += g[c * block + r];
      product(n, D, count, g, block, int64_t{1}, p.x + row0 * D, D, grad_keys.data(), D, more);
      if (p.grad_memory.data != nullptr)
        product(n, D, count, logits.data(), block, int64_t{1}, p.grad_recalled + row0 * D, D,
                grad_memory.data(), D, more);
      if (p.key_scale != nullptr)
        for (int64_t c = 0; c < n; ++c)
          for (int64_t r = 0; r < count; ++r) g[c * block + r] *= p.key_scale[c0 + c];
      product(count, D, n, g, int64_t{1}, block, keys, D, grad_x + row0 * D, D, true);
    }
    for (int64_t c = 0; p.key_scale != nullptr && c < n; ++c) {
      T* h = grad_keys.data() + c * D;
      const T* key = keys + c * D;
      T along = 0;
      if (p.normalised) {
        const T norm2 = dot(key, key, D);
        along = norm2 > 0 ? dot(key, h, D) / norm2 : T(0);
      }
      for (int64_t d = 0; d < D; ++d) h[d] = p.key_scale[c0 + c] * (h[d] - along * key[d]);
    }
    convert_out(grad_keys.data(), n * D, p.grad_keys.data, p.grad_keys.dtype, c0 * D);
    if (p.grad_key_bias.data != nullptr)
      convert_out(bias.data(), n, p.grad_key_bias.data, p.grad_key_bias.dtype, c0);
    if (p.grad_memory.data != nullptr)
      convert_out(grad_memory.data(), n * D, p.grad_memory.data, p.grad_memory.dtype, c0 * D);
  }
}

template <class T>
static void bank_backward(const BankBackward<T>& p, const Parallel& parallel) {
  const int64_t B = p.size.batch, D = p.size.width;
  const Plan plan = make_plan(B, p.size.classes, D, sizeof(T));
  const int64_t parts = plan.splits_backward;
  const int64_t padded = round_up(B, plan.row_block) * D;
  const bool attention = p.kind == LogitGradient::kAttention;
  const Buffer<T> xt(padded), grad_recalled_t(attention ? padded : 0), grad_x(parts * B * D);
  transpose_all(p.x, B, D, plan.row_block, xt.data(), parallel);
  if (attention)
    transpose_all(p.grad_recalled, B, D, plan.row_block, grad_recalled_t.data(), parallel);
  const BackwardScratch<T> shared{xt.data(), grad_recalled_t.data(), grad_x.data()};
  parallel_tasks(parallel, parts, [&](int64_t part) { bank_backward_part(p, plan, shared, part); });
  parallel_ranges(parallel, B, int64_t{16}, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * D; i < end * D; ++i) {
      T sum = 0;
      for (int64_t part = 0; part < parts; ++part) sum += grad_x[part * B * D + i];
      p.grad_x[i] = sum;
    }
  });
}

}  // namespace OLTR_ISA
}  // namespace oltr
