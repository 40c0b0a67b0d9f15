// The launch plan: how an op cuts its work. It depends on shapes alone, never on the number of
// threads, so that the order of every sum, and with it every bit of a result, is the same on one
// thread and on sixty-four.
#pragma once

#include <cstdint>

#include "common/merge.h"

namespace oltr {

// How a kind of product likes its work cut.
struct Cut {
  int64_t row_block = 64;              // rows of the batch that one product takes, at most
  int64_t class_tile = 144;            // bank rows at a time, at most
  int64_t class_unit = 6;              // tiles are a multiple of this
  int64_t least_split = 512;           // classes; a shorter part costs more to merge than it saves
  int64_t states = int64_t{32} << 20;  // bytes of all partial states, but for four of the backward
};

struct Plan {
  int64_t row_block;        // rows of the batch that share the vector lanes of one product
  int64_t row_group;        // rows, in whole blocks, that share one staged tile of the bank
  int64_t class_tile;       // bank rows kept in cache while everything about them is computed
  int64_t splits_forward;   // parts of the bank with a partial state each, merged in order
  int64_t splits_backward;  // parts of the bank that own their rows; dx is their ordered sum
  int64_t scratch_bytes;    // workspace of the larger of the two passes
};

OLTR_HD int64_t div_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
OLTR_HD int64_t round_up(int64_t a, int64_t b) { return div_up(a, b) * b; }
OLTR_HD int64_t clamp(int64_t a, int64_t lo, int64_t hi) { return a < lo ? lo : a > hi ? hi : a; }

// batch B, classes C, width D, and the bytes of the accumulator (4, or 8 for float64).
inline Plan make_plan(int64_t B, int64_t C, int64_t D, int64_t accumulator_bytes, Cut cut = {}) {
  constexpr int64_t kLanes = 16;  // rows are padded to the widest vector of any instruction set
  constexpr int64_t kTasks = 32;  // enough for the cores of one socket, few enough to merge
  Plan plan;
  plan.row_block = clamp(round_up(B, kLanes), kLanes, cut.row_block);
  plan.class_tile = cut.class_tile;
  const int64_t longest = div_up(C > 0 ? C : 1, cut.least_split);
  const int64_t blocks = div_up(B > 0 ? B : 1, plan.row_block);
  const int64_t per_group = clamp(blocks * longest / kTasks, 1, clamp(256 / cut.row_block, 1, 4));
  plan.row_group = per_group * plan.row_block;
  const int64_t state = (B > 0 ? B : 1) * D * accumulator_bytes;
  const int64_t groups = div_up(blocks, per_group);
  plan.splits_forward = clamp(div_up(kTasks, groups), 1, clamp(cut.states / state, 1, longest));
  plan.splits_backward = clamp(cut.states / state, 4, 16);
  // Their sums are cheaper to merge; and a small bank is cut in two, if in parts of 64 classes.
  const int64_t share = clamp(div_up(C, 2), 64, cut.least_split / 2);
  const int64_t owners = div_up(C > 0 ? C : 1, share);
  if (plan.splits_backward > owners) plan.splits_backward = owners;
  const int64_t forward = plan.splits_forward * state;
  const int64_t backward = (plan.splits_backward + 6) * state;
  plan.scratch_bytes = forward > backward ? forward : backward;
  return plan;
}

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};
// Part `i` of `n` classes cut in `parts`, nearly equal, in multiples of `unit`.
OLTR_HD Range part_of(int64_t i, int64_t parts, int64_t n, int64_t unit) {
  const int64_t units = div_up(n, unit);
  const int64_t begin = units * i / parts * unit;
  const int64_t end = units * (i + 1) / parts * unit;
  return {begin < n ? begin : n, end < n ? end : n};
}
// The size of the tiles that cut `n` classes nearly equally, none larger than `most`.
inline int64_t even_tile(int64_t n, int64_t most, int64_t unit) {
  return n == 0 ? unit : round_up(div_up(n, div_up(n, most)), unit);
}

}  // namespace oltr
