// One pass over the class bank: softmax statistics, the recalled feature and the nearest centroid,
// each optional, all from the same tile while it is in cache.
//
// A task is a group of row blocks times a part of the bank. It holds the state (m, l, o, d2, k) of
// common/merge.h for its rows; a second step merges the parts in their order.
#pragma once

#include "cpu/measure_again.h"
#include "cpu/nearest_tile.h"
#include "cpu/product.h"

namespace oltr {
namespace OLTR_ISA {

// A tile's logits from its products, a number or a vector of them: made where products are read.
template <class T>
struct TileLogit {
  Buffer<T> scale, offset;
  OLTR_INLINE explicit TileLogit(int64_t tile) : scale(tile), offset(tile) {}
  template <class V>
  OLTR_INLINE V operator()(int64_t c, V product) const {
    return product * scale[c] + offset[c];
  }
};

// How the products x . keys_c become logits: s_c (x . keys_c) + b_c.
template <class T>
struct LogitRule {
  const T* bias = nullptr;  // b (C); optional
  bool cosine = false;      // s_c = scale / |keys_c|, 0 for a zero row; else s_c = 1
  T scale = 1;

  // s and b of one staged tile, whose first row is class `first`.
  template <class M>
  OLTR_INLINE void stage(const Layout<M>& layout, const T* keys, int64_t first, int64_t n,
                         const TileLogit<T>& out) const {
    for (int64_t c = 0; c < n; ++c) {
      out.offset[c] = bias != nullptr ? bias[first + c] : T(0);
      out.scale[c] = 1;
      if (!cosine) continue;
      const T norm = std::sqrt(M::norm2(keys + c * layout.natural_row, layout.words));
      out.scale[c] = norm == T(0) ? T(0) : scale / norm;
    }
  }
};

template <class M>
struct BankForward {
  using T = typename M::Acc;
  Sizes size;
  Matrix x;     // (B,D)
  Matrix keys;  // (C,D); absent: no softmax
  LogitRule<T> logits;
  Matrix memory;                    // (C,D)
  bool nearest = false;             // find the nearest row of memory
  const int64_t* target = nullptr;  // (B) optional, with
  T* picked = nullptr;              // (B) the target's logit; untouched where there is none
  T* recalled = nullptr;            // (B,D) softmax-weighted sum of memory; optional
  T* lse = nullptr;                 // (B)
  T* distance = nullptr;            // (B) to the nearest
  int64_t* index = nullptr;         // (B)
};

// Turns products into exp(logit - m) and merges the tile into (m, l); keep[r] rescales o. m need not
// be the maximum itself: it stays until a logit exceeds it by more than `headroom`, so that o is
// seldom rescaled.
template <class T, int64_t panel>
OLTR_INLINE void tile_softmax(Panels<T, panel> scores, const TileLogit<T>& logit, int64_t count,
                              int64_t block, T headroom, T* max, T* sum, T* keep) {
  constexpr int L = Lanes<T>::n;
  for (int64_t r = 0; r < block; r += L) {
    const Vec<T> tile_max =
        extreme<T, true>(scores.at(0, r), count, scores.row, splat(Identity<T>::max), logit);
    Vec<T> m = load<T>(max + r);
    const Vec<T> top = tile_max > m + headroom ? tile_max : m;
    Vec<T> tile_sum = {};
    for (int64_t c = 0; c < count; ++c) {
      const Vec<T> p = exp_lanes(logit(c, load<T>(scores.at(c, r))) - top);
      store<T>(scores.at(c, r), p);
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

// The partial states of `n` rows; those of one part of the bank lie together.
template <class T>
struct PartialStates {
  int64_t row;  // stride of recalled
  Buffer<T> max, sum, best, distance2, score, recalled;
  Buffer<int64_t> index, pending;
  OLTR_INLINE PartialStates(int64_t n, int64_t width)
      : row(width),
        max(n),
        sum(n),
        best(n),
        distance2(n),
        score(n),
        recalled(n * width),
        index(n),
        pending(n) {}
  OLTR_INLINE void clear(int64_t first, int64_t n) const {
    fill(max.data() + first, n, Identity<T>::max);
    fill(sum.data() + first, n, Identity<T>::sum);
    fill(best.data() + first, n, Identity<T>::distance2);
    fill(distance2.data() + first, n, Identity<T>::distance2);
    fill(index.data() + first, n, Identity<T>::index);
    fill(pending.data() + first, n, int64_t{-1});
  }
};

template <class M>
struct BankPass {
  using T = typename M::Acc;
  const BankForward<M>& p;
  Plan plan;
  Layout<M> layout;
  RowBlocks<M> rows;
  Converted<T> x;    // for distances, as given
  Buffer<T> length;  // (B) |x|, not 0: by an infinite centroid's length that would be NaN
  PartialStates<T> states;
  int64_t padded_batch;

  OLTR_INLINE BankPass(const BankForward<M>& forward, const Parallel& parallel)
      : p(forward),
        plan(make_plan(p.size.batch, p.size.classes, p.size.width, sizeof(T), M::cut)),
        layout(p.size.width, {p.keys, p.memory}),
        rows(p.x, p.size.batch, p.size.width, plan.row_block, true, false, parallel),
        x(p.nearest ? p.x : Matrix{}, p.size.batch * p.size.width, parallel),
        length(round_up(p.size.batch, plan.row_block)),
        states(plan.splits_forward * round_up(p.size.batch, plan.row_block),
               p.recalled != nullptr ? layout.interleaved_row : 0),
        padded_batch(round_up(p.size.batch, plan.row_block)) {
    const int64_t B = p.size.batch, D = p.size.width;
    fill(length.data() + B, padded_batch - B, T(0));
    if (!p.nearest) return;
    parallel_ranges(parallel, B, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        length[r] =
            std::sqrt(dot(x.data() + r * D, x.data() + r * D, D)) + std::numeric_limits<T>::min();
    });
  }

  // What a task stages of the bank, and its scores.
  struct Stage {
    Buffer<T> key_rows, memory_rows, interleaved_rows, scores, words, norms2, keep;
    TileLogit<T> logit;
    T largest = 0;           // norm2 of the memory so far
    const T *keys, *memory;  // the tile, staged or in place
    View<M, const T> interleaved;
    // Probabilities that wait, and the rows they weigh: `waiting` words up to `at`, of classes from
    // `since` on. What they add to is larger than they are, and so passes by less often.
    int64_t room, at = 0, waiting = 0, since = 0;
    Operand<T> weights;
    View<M, const T> weighed;
    Ahead next_keys, next_memory;  // the tile after this one
    OLTR_INLINE Stage(const BankPass& pass, int64_t tile)
        : key_rows(pass.p.keys.data != nullptr ? pass.layout.natural(tile) : 0),
          memory_rows(pass.p.memory.data != nullptr ? pass.layout.natural(tile) : 0),
          interleaved_rows(pass.p.recalled != nullptr
                               ? pass.recall_tiles(tile) * pass.layout.interleaved(tile)
                               : 0),
          scores(round_up(tile, M::row_unit) * pass.plan.row_block),
          words(M::scratch(pass.recall_tiles(tile) * tile, pass.plan.row_block)),
          norms2(tile),
          keep(pass.plan.row_block),
          logit(tile),
          room(pass.recall_tiles(tile) * depth<M>(tile)) {}
  };
  // Tiles that may wait: the second cache has other things to hold.
  OLTR_INLINE int64_t recall_tiles(int64_t tile) const {
    constexpr int64_t kMost = (int64_t{512} << 10) / static_cast<int64_t>(sizeof(T));
    if constexpr (M::recall_tiles == 1) return 1;
    // What waits is a task's: of one row block, then.
    static_assert(M::recall_tiles == 1 || M::cut.row_block >= 256);
    if (p.recalled == nullptr) return 1;
    return clamp(kMost / layout.interleaved(tile), 1, M::recall_tiles);
  }

  OLTR_INLINE void attend(Stage& s, int64_t c0, int64_t n, int64_t block, int64_t slot,
                          Range range) const {
    const int64_t lanes = rows.width(block), count = rows.count(block);
    const View<M> scores = view<M>(s.scores.data(), round_up(n, M::row_unit), lanes);
    product<M>(n, lanes, layout.words, Operand<T>{s.keys, layout.natural_row, 1},
               rows.columns(block), scores, false, s.next_keys);
    for (int64_t r = 0; p.target != nullptr && r < count; ++r) {
      const int64_t row = rows.first(block) + r, c = p.target[row] - c0;
      if (c >= 0 && c < n) p.picked[row] = s.logit(c, *scores.at(c, r));
    }
    tile_softmax(scores, s.logit, n, lanes, M::headroom, states.max.data() + slot,
                 states.sum.data() + slot, s.keep.data());
    if (p.recalled == nullptr) return;
    T* recalled = states.recalled.data() + slot * states.row;
    const auto recall = [&] {
      product<M>(count, layout.full, s.waiting, s.weights, s.weighed,
                 plain<M>(recalled, states.row), s.since > range.begin, s.next_memory);
      s.waiting = 0;
    };
    bool kept = true;
    for (int64_t r = 0; r < count; ++r) kept = kept && s.keep[r] == T(1);
    if (c0 > range.begin && !kept) {
      if (s.waiting > 0) recall();
      for (int64_t r = 0; r < count; ++r)
        if (s.keep[r] != T(1))
          for (int64_t d = 0; d < states.row; ++d) recalled[r * states.row + d] *= s.keep[r];
    }
    const Operand<T> weights = M::down(scores, n, lanes, s.room, s.words.data() + s.at);
    if (s.waiting == 0) s.weights = weights, s.weighed = s.interleaved, s.since = c0;
    s.waiting += depth<M>(n);
    s.at += depth<M>(n);
    if (s.at < s.room && c0 + n < range.end) return;
    recall();
    s.at = 0;
  }

  OLTR_INLINE void measure(Stage& s, int64_t c0, int64_t n, int64_t block, int64_t slot) const {
    const int64_t lanes = rows.width(block);
    const View<M> scores = view<M>(s.scores.data(), round_up(n, M::row_unit), lanes);
    product<M>(n, lanes, layout.words, Operand<T>{s.memory, layout.natural_row, 1},
               rows.columns(block), scores, false, s.next_memory);
    nearest(s, scores, c0, n, block, slot).run();
  }
  OLTR_INLINE NearestTile<M> nearest(Stage& s, View<M> scores, int64_t c0, int64_t n, int64_t block,
                                     int64_t slot) const {
    const int64_t row0 = rows.first(block);
    return {scores,
            s.norms2.data(),
            s.largest,
            p.memory,
            x.data() + row0 * p.size.width,
            length.data() + row0,
            c0,
            n,
            rows.count(block),
            rows.width(block),
            p.size.width,
            {states.best.data() + slot, states.distance2.data() + slot, states.index.data() + slot,
             states.score.data() + slot, states.pending.data() + slot}};
  }

  OLTR_INLINE void run(int64_t task) const {
    const int64_t parts = plan.splits_forward, part = task % parts, D = p.size.width;
    const int64_t block0 = task / parts * (plan.row_group / plan.row_block);
    const int64_t blocks = div_up(p.size.batch, plan.row_block);
    const int64_t last = block0 + plan.row_group / plan.row_block;
    const int64_t block1 = last < blocks ? last : blocks;
    const Range range = part_of(part, parts, p.size.classes, M::cut.class_unit);
    const int64_t tile = even_tile(range.size(), plan.class_tile, M::cut.class_unit);
    const auto slot = [&](int64_t block) { return part * padded_batch + rows.first(block); };
    states.clear(slot(block0), (block1 - block0) * plan.row_block);

    const typename M::Session session;
    Stage s(*this, tile);
    for (int64_t c0 = range.begin; c0 < range.end; c0 += tile) {
      const int64_t n = range.end - c0 < tile ? range.end - c0 : tile;
      if (p.keys.data != nullptr) {
        s.keys = stage_natural(layout, p.keys, c0, n, s.key_rows.data());
        p.logits.stage(layout, s.keys, c0, n, s.logit);
      }
      if (p.memory.data != nullptr)
        s.memory = stage_natural(layout, p.memory, c0, n, s.memory_rows.data());
      if (p.recalled != nullptr)
        s.interleaved = interleave(layout, s.memory, n, s.interleaved_rows.data(), s.at, s.room);
      const int64_t more = range.end - c0 - n < tile ? range.end - c0 - n : tile;
      s.next_keys = ahead_of(p.keys, c0 + n, more, D);
      s.next_memory = ahead_of(p.memory, c0 + n, more, D);
      for (int64_t c = 0; p.nearest && c < n; ++c) {
        s.norms2[c] = M::norm2(s.memory + c * layout.natural_row, layout.words);
        s.largest = s.norms2[c] > s.largest ? s.norms2[c] : s.largest;
      }
      for (int64_t block = block0; block < block1; ++block) {
        if (p.keys.data != nullptr) attend(s, c0, n, block, slot(block), range);
        if (p.nearest) measure(s, c0, n, block, slot(block));
      }
    }
    if (!p.nearest || range.size() == 0) return;
    const Buffer<T> scratch(D);
    for (int64_t block = block0; block < block1; ++block) {
      nearest(s, {}, 0, 0, block, slot(block)).finish();
      for (int64_t r = 0; r < rows.count(block); ++r) {
        const int64_t i = slot(block) + r;
        if (states.index[i] != Identity<T>::index) continue;
        // Nothing compared: the row holds NaN or infinity. Its own distance says so.
        const T* c = OLTR_ISA::rows(p.memory, range.begin, 1, D, scratch.data());
        states.distance2[i] = squared_distance(x.data() + (rows.first(block) + r) * D, c, D);
        states.index[i] = range.begin;
      }
    }
  }

  // The states of row r merged in the order of their parts.
  OLTR_INLINE void merge(int64_t r) const {
    const int64_t D = p.size.width;
    T max = Identity<T>::max, sum = Identity<T>::sum, d2 = Identity<T>::distance2;
    int64_t index = Identity<T>::index;
    T* o = p.recalled != nullptr ? p.recalled + r * D : nullptr;
    if (o != nullptr) fill(o, D, T(0));
    for (int64_t part = 0; part < plan.splits_forward; ++part) {
      const int64_t slot = part * padded_batch + r;
      T keep, take;
      merge_softmax(max, sum, states.max[slot], states.sum[slot], keep, take,
                    [](T v) { return exp_scalar(v); });
      const T* other = states.recalled.data() + slot * states.row;
      for (int64_t d = 0; o != nullptr && d < D; ++d) o[d] = o[d] * keep + other[d] * take;
      if (closer(states.distance2[slot], states.index[slot], d2, index)) {
        d2 = states.distance2[slot];
        index = states.index[slot];
      }
    }
    for (int64_t d = 0; o != nullptr && d < D; ++d) o[d] /= sum;
    if (p.lse != nullptr) p.lse[r] = max + std::log(sum);
    if (!p.nearest) return;
    Nearby<T> found{d2, 1, index};
    if (!in_range(d2) || length[r] > Squares<T>::high_root)
      found = measure_again(x.data() + r * D, length[r], p.memory, p.size, d2, index);
    p.distance[r] = std::sqrt(found.distance2) / found.scale;
    p.index[r] = found.index;
  }
};

template <class M>
static void bank_forward(const BankForward<M>& p, const Parallel& parallel) {
  if (p.size.batch == 0) return;
  const BankPass<M> pass(p, parallel);
  const int64_t groups = div_up(p.size.batch, pass.plan.row_group);
  parallel_tasks(parallel, groups * pass.plan.splits_forward,
                 [&](int64_t task) { pass.run(task); });
  parallel_ranges(parallel, p.size.batch, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) pass.merge(r);
  });
}

}  // namespace OLTR_ISA
}  // namespace oltr
