// All logits of the bank written out, for the ops whose result they are.
#pragma once

#include "cpu/bank_forward.h"

namespace oltr {
namespace OLTR_ISA {

// out[r, c] = write(logit), tile after tile, through `write(Vec)`.
template <class M, class Write, class T = typename M::Acc>
static void bank_logits(Sizes size, Matrix x, Matrix keys, LogitRule<T> rule, MutableMatrix out,
                        const Parallel& parallel, Write write) {
  const int64_t B = size.batch, C = size.classes, D = size.width;
  if (B == 0) return;
  const Plan plan = make_plan(B, C, D, sizeof(T), M::cut);
  const Layout<M> layout(D, {keys});
  const RowBlocks<M> rows(x, B, D, plan.row_block, true, false, parallel);
  const int64_t block = plan.row_block, groups = div_up(B, plan.row_group);
  const int64_t parts = clamp(div_up(32, groups), 1, div_up(C, plan.class_tile));
  parallel_tasks(parallel, groups * parts, [&](int64_t task) {
    const Range range = part_of(task % parts, parts, C, M::cut.class_unit);
    const int64_t tile = even_tile(range.size(), plan.class_tile, M::cut.class_unit);
    const int64_t row0 = task / parts * plan.row_group;
    const int64_t row1 = row0 + plan.row_group < B ? row0 + plan.row_group : B;
    const typename M::Session session;
    const Buffer<T> staged(layout.natural(tile)), scores(round_up(tile, M::row_unit) * block),
        lines(block * tile);
    const TileLogit<T> logit(tile);
    for (int64_t c0 = range.begin; c0 < range.end; c0 += tile) {
      const int64_t n = range.end - c0 < tile ? range.end - c0 : tile;
      const T* words = stage_natural(layout, keys, c0, n, staged.data());
      rule.stage(layout, words, c0, n, logit);
      const int64_t left = range.end - c0 - n < tile ? range.end - c0 - n : tile;
      Ahead next = ahead_of(keys, c0 + n, left, D);
      for (int64_t i = row0 / block; i < div_up(row1, block); ++i) {
        const int64_t lanes = rows.width(i), step = M::panel > 0 ? M::panel : lanes;
        const View<M> tile_scores = view<M>(scores.data(), round_up(n, M::row_unit), lanes);
        product<M>(n, lanes, layout.words, Operand<T>{words, layout.natural_row, 1},
                   rows.columns(i), tile_scores, false, next);
        for (int64_t r0 = 0; r0 < lanes; r0 += step)
          for (int64_t c = 0; c < n; ++c)
            for (int64_t r = r0; r < r0 + step; r += Lanes<T>::n) {
              T* at = tile_scores.at(c, r);
              store<T>(at, write(logit(c, load<T>(at))));
            }
        const bool direct = out.dtype == NativeDtype<T>::value;
        T* to = direct ? static_cast<T*>(out.data) + rows.first(i) * C + c0 : lines.data();
        for (int64_t r = 0; r < rows.count(i); r += step) {
          const int64_t live = rows.count(i) - r < step ? rows.count(i) - r : step;
          transpose(tile_scores.at(0, r), tile_scores.row, n, live, to + r * (direct ? C : n),
                    direct ? C : n);
        }
        for (int64_t r = 0; !direct && r < rows.count(i); ++r)
          convert_out(to + r * n, n, out.data, out.dtype, (rows.first(i) + r) * C + c0);
      }
    }
  });
}

}  // namespace OLTR_ISA
}  // namespace oltr
