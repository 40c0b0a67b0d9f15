// One pass over the class bank: softmax statistics, the recalled feature and the nearest centroid,
// each optional, all from the same tile while it is in cache.
//
// A task is a block of rows times a part of the bank. It holds the state (m, l, o, d2, k) of
// common/merge.h for its rows; a second step merges the parts in their order.
#pragma once

#include "cpu/product.h"
#include "cpu/rows.h"

namespace oltr {
namespace OLTR_ISA {

template <class T>
struct BankForward {
  Sizes size;
  const T* x = nullptr;          // (B,D)
  Matrix keys;                   // (C,D); absent: no softmax
  const T* key_scale = nullptr;  // (C) multiplies the logits; optional
  const T* key_bias = nullptr;   // (C) is added to them; optional
  Matrix memory;                 // (C,D)
  bool nearest = false;          // find the nearest row of memory
  T* recalled = nullptr;         // (B,D) softmax-weighted sum of memory; optional
  T* lse = nullptr;              // (B)
  T* distance2 = nullptr;        // (B)
  int64_t* index = nullptr;      // (B)
};

// logits[c, r] of one tile for one block, batch in the lanes.
template <class T>
OLTR_INLINE void tile_logits(const T* keys, const T* scale, const T* bias, int64_t first,
                             int64_t count, int64_t width, const T* xt, int64_t block, T* logits) {
  product(count, block, width, keys, width, int64_t{1}, xt, block, logits, block, false);
  if (scale == nullptr && bias == nullptr) return;
  for (int64_t c = 0; c < count; ++c) {
    const T s = scale != nullptr ? scale[first + c] : T(1);
    const T b = bias != nullptr ? bias[first + c] : T(0);
    for (int64_t r = 0; r < block; ++r) logits[c * block + r] = logits[c * block + r] * s + b;
  }
}

// Turns logits into exp(logit - m) and merges the tile into (m, l); keep[r] rescales o.
template <class T>
OLTR_INLINE void tile_softmax(T* logits, int64_t count, int64_t block, T* max, T* sum, T* keep) {
  constexpr int L = Lanes<T>::n;
  for (int64_t r = 0; r < block; r += L) {
    Vec<T> tile_max = splat(Identity<T>::max);
    for (int64_t c = 0; c < count; ++c) {
      const Vec<T> s = load<T>(logits + c * block + r);
      tile_max = s > tile_max ? s : tile_max;
    }
    Vec<T> m = load<T>(max + r);
    const Vec<T> top = tile_max > m ? tile_max : m;
    Vec<T> tile_sum = {};
    for (int64_t c = 0; c < count; ++c) {
      const Vec<T> p = exp_lanes(load<T>(logits + c * block + r) - top);
      store<T>(logits + c * block + r, p);
      tile_sum += p;
    }
    Vec<T> l = load<T>(sum + r), kept, taken;
    // The tile's sums are already relative to `top`, the merged maximum, so its factor is 1.
    merge_softmax(m, l, top, tile_sum, kept, taken, [](Vec<T> v) { return exp_lanes(v); });
    store<T>(max + r, m);
    store<T>(sum + r, l);
    store<T>(keep + r, kept);
  }
}

// Finds the nearest rows of one tile. The product |c|^2/2 - x.c only *selects*: every class within
// its rounding error of the best is measured as sum (x-c)^2, so the winner is the true one.
template <class T>
struct NearestTile {
  T* scores;        // (count, block): x.c on entry, |c|^2/2 - x.c after
  const T* memory;  // (count, D)
  const T* norms2;  // (count)
  const T* x;       // (rows, D)
  const T* slack;   // (block) rounding error of a score per unit of |c|, |c|^2 at most
  int64_t first, count, rows, block, width;
  T* best;         // (block) smallest score so far
  T* distance2;    // (block)
  int64_t* index;  // (block)

  OLTR_INLINE void measure(int64_t c, int64_t r) const {
    const T d2 = squared_distance(x + r * width, memory + c * width, width);
    if (closer(d2, first + c, distance2[r], index[r])) {
      distance2[r] = d2;
      index[r] = first + c;
    }
  }

  OLTR_INLINE void run() const {
    constexpr int L = Lanes<T>::n;
    T largest = 0;
    for (int64_t c = 0; c < count; ++c) {
      largest = norms2[c] > largest ? norms2[c] : largest;
      if (norms2[c] != norms2[c])  // a NaN centroid wins every row, as in torch.min
        for (int64_t r = 0; r < rows; ++r) measure(c, r);
    }
    const T norm = std::sqrt(largest), half = largest / 2;
    constexpr T eps = std::numeric_limits<T>::epsilon();
    const T unit = 4 * eps * (8 + std::sqrt(static_cast<T>(width)));
    for (int64_t r = 0; r < block; r += L) {
      Vec<T> low = splat(std::numeric_limits<T>::infinity());
      for (int64_t c = 0; c < count; ++c) {
        const Vec<T> s = norms2[c] / 2 - load<T>(scores + c * block + r);
        store<T>(scores + c * block + r, s);
        low = s < low ? s : low;
      }
      const Vec<T> before = load<T>(best + r);
      const Vec<T> after = low < before ? low : before;
      store<T>(best + r, after);
      const Vec<T> limit = after + unit * (load<T>(slack + r) * norm + half);
      if (!any<T>(low <= limit)) continue;
      for (int64_t c = 0; c < count; ++c) {
        const auto near = load<T>(scores + c * block + r) <= limit;
        if (!any<T>(near)) continue;
        for (int lane = 0; lane < L && r + lane < rows; ++lane)
          if (near[lane]) measure(c, r + lane);
      }
    }
  }
};

// The partial states of all rows over one part of the bank.
template <class T>
struct PartialStates {
  Buffer<T> max, sum, distance2, recalled;
  Buffer<int64_t> index;
  OLTR_INLINE PartialStates(int64_t n, int64_t width)
      : max(n), sum(n), distance2(n), recalled(n * width), index(n) {}
};

template <class T>
static void bank_part(const BankForward<T>& p, const Plan& plan, const PartialStates<T>& out,
                      int64_t task) {
  const int64_t B = p.size.batch, D = p.size.width, block = plan.row_block, tile = plan.class_tile;
  const int64_t parts = plan.splits_forward, part = task % parts;
  const int64_t row0 = task / parts * block, count = B - row0 < block ? B - row0 : block;
  const Range range = part_of(part, parts, p.size.classes, tile);
  const bool softmax = p.keys.data != nullptr, recall = p.recalled != nullptr;
  const int64_t slot = part * B + row0;

  const Buffer<T> xt(D * block), keep(block), max(block), sum(block), slack(block), best(block),
      d2(block), norms2(tile), scores(tile * block);
  const Buffer<T> key_rows(p.keys.dtype == NativeDtype<T>::value ? 0 : tile * D);
  const Buffer<T> memory_rows(p.memory.dtype == NativeDtype<T>::value ? 0 : tile * D);
  const Buffer<int64_t> index(block);
  const T* x = p.x + row0 * D;
  T* recalled = recall ? out.recalled.data() + slot * D : nullptr;
  transpose_block(x, count, D, block, xt.data());
  fill(max.data(), block, Identity<T>::max);
  fill(sum.data(), block, Identity<T>::sum);
  fill(d2.data(), block, Identity<T>::distance2);
  fill(best.data(), block, Identity<T>::distance2);
  fill(index.data(), block, Identity<T>::index);
  fill(slack.data(), block, T(0));
  if (recall) fill(recalled, count * D, T(0));
  if (p.nearest)
    for (int64_t r = 0; r < count; ++r) slack[r] = std::sqrt(dot(x + r * D, x + r * D, D));

  for (int64_t c0 = range.begin; c0 < range.end; c0 += tile) {
    const int64_t n = range.end - c0 < tile ? range.end - c0 : tile;
    const T* memory = nullptr;
    if (recall || p.nearest) memory = rows(p.memory, c0, n, D, memory_rows.data());
    if (softmax) {
      const T* keys = rows(p.keys, c0, n, D, key_rows.data());
      tile_logits(keys, p.key_scale, p.key_bias, c0, n, D, xt.data(), block, scores.data());
      tile_softmax(scores.data(), n, block, max.data(), sum.data(), keep.data());
    }
    if (recall) {
      for (int64_t r = 0; r < count; ++r)
        if (keep[r] != T(1))
          for (int64_t d = 0; d < D; ++d) recalled[r * D + d] *= keep[r];
      product(count, D, n, scores.data(), int64_t{1}, block, memory, D, recalled, D, true);
    }
    if (p.nearest) {
      for (int64_t c = 0; c < n; ++c) norms2[c] = dot(memory + c * D, memory + c * D, D);
      product(n, block, D, memory, D, int64_t{1}, xt.data(), block, scores.data(), block, false);
      NearestTile<T>{scores.data(), memory, norms2.data(), x,         slack.data(), c0, n, count,
                     block,         D,      best.data(),   d2.data(), index.data()}
          .run();
    }
  }
  for (int64_t r = 0; r < count; ++r) {
    if (p.nearest && index[r] == Identity<T>::index && range.begin < range.end) {
      // Nothing compared: the row holds NaN or infinity. Its own distance says so.
      const T* c = rows(p.memory, range.begin, 1, D, memory_rows.data());
      d2[r] = squared_distance(x + r * D, c, D);
      index[r] = range.begin;
    }
    out.max[slot + r] = max[r];
    out.sum[slot + r] = sum[r];
    out.distance2[slot + r] = d2[r];
    out.index[slot + r] = index[r];
  }
}

template <class T>
static void bank_forward(const BankForward<T>& p, const Parallel& parallel) {
  const int64_t B = p.size.batch, D = p.size.width;
  if (B == 0) return;
  const Plan plan = make_plan(B, p.size.classes, D, sizeof(T));
  const int64_t parts = plan.splits_forward;
  const PartialStates<T> partial(parts * B, p.recalled != nullptr ? D : 0);
  parallel_tasks(parallel, div_up(B, plan.row_block) * parts,
                 [&](int64_t task) { bank_part(p, plan, partial, task); });

  parallel_ranges(parallel, B, int64_t{16}, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      T max = Identity<T>::max, sum = Identity<T>::sum, d2 = Identity<T>::distance2;
      int64_t index = Identity<T>::index;
      T* o = p.recalled != nullptr ? p.recalled + r * D : nullptr;
      if (o != nullptr) fill(o, D, T(0));
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t slot = part * B + r;
        T keep, take;
        merge_softmax(max, sum, partial.max[slot], partial.sum[slot], keep, take,
                      [](T v) { return exp_scalar(v); });
        if (o != nullptr) {
          const T* other = partial.recalled.data() + slot * D;
          for (int64_t d = 0; d < D; ++d) o[d] = o[d] * keep + other[d] * take;
        }
        if (closer(partial.distance2[slot], partial.index[slot], d2, index)) {
          d2 = partial.distance2[slot];
          index = partial.index[slot];
        }
      }
      if (o != nullptr)
        for (int64_t d = 0; d < D; ++d) o[d] /= sum;
      if (p.lse != nullptr) p.lse[r] = max + std::log(sum);
      if (p.distance2 != nullptr) p.distance2[r] = d2;
      if (p.index != nullptr) p.index[r] = index;
    }
  });
}

// All logits of the bank, one tile after the other, into out (B,C) through `write(value)`.
template <class T, class Write>
static void bank_logits(Sizes size, const T* x, Matrix keys, const T* scale, const T* bias,
                        MutableMatrix out, const Parallel& parallel, Write write) {
  const int64_t B = size.batch, C = size.classes, D = size.width;
  if (B == 0) return;
  const Plan plan = make_plan(B, C, D, sizeof(T));
  const int64_t parts = plan.splits_forward, block = plan.row_block, tile = plan.class_tile;
  parallel_tasks(parallel, div_up(B, block) * parts, [&](int64_t task) {
    const int64_t row0 = task / parts * block, count = B - row0 < block ? B - row0 : block;
    const Range range = part_of(task % parts, parts, C, tile);
    const Buffer<T> xt(D * block), scores(tile * block), line(tile);
    const Buffer<T> key_rows(keys.dtype == NativeDtype<T>::value ? 0 : tile * D);
    transpose_block(x + row0 * D, count, D, block, xt.data());
    for (int64_t c0 = range.begin; c0 < range.end; c0 += tile) {
      const int64_t n = range.end - c0 < tile ? range.end - c0 : tile;
      tile_logits(rows(keys, c0, n, D, key_rows.data()), scale, bias, c0, n, D, xt.data(), block,
                  scores.data());
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t c = 0; c < n; ++c) line[c] = write(scores[c * block + r]);
        convert_out(line.data(), n, out.data, out.dtype, (row0 + r) * C + c0);
      }
    }
  });
}

}  // namespace OLTR_ISA
}  // namespace oltr
