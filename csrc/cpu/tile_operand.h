// Pairs of bfloat16 multiplied by matrix tiles. With one plane a number is rounded to a bfloat16;
// with two it is the sum of two of them, which keeps 16 of float's 24 bits, and a product is three.
#pragma once

#include "cpu/operand.h"
#include "cpu/tile.h"

namespace oltr {
namespace OLTR_ISA {

template <int kPlanes>
struct Tiled : PairWords {
  using Session = TileSession;
  static constexpr int planes = kPlanes;
  static constexpr int64_t piece = group * kTile;  // by the instruction itself
  static constexpr float headroom = 8;
  static constexpr int64_t panel = kTile, depth_unit = kTile, row_unit = kTile, out_rows = 32;
  static constexpr int64_t recall_tiles = planes == 1 ? 2 : 1;
  // Many rows read a tile of the bank, and many classes add to a recalled feature, while it is in
  // the second cache.
  static constexpr Cut cut{/*row_block=*/256, /*class_tile=*/128, /*class_unit=*/32,
                           /*least_split=*/512, /*states=*/int64_t{4} << 20};

  static OLTR_INLINE void words(Matrix m, int64_t first, int64_t n, int64_t words, float* out) {
    fill_words<planes>(m, first, n, words, out);
  }
  static OLTR_INLINE float norm2(const float* row, int64_t n) {
    return words_norm2<planes>(row, n);
  }

  static OLTR_INLINE int64_t depth(int64_t n) { return round_up(round_up(n, 2) / 2, kTile); }
  static OLTR_INLINE int64_t scratch(int64_t classes, int64_t lanes) {
    const int64_t down = lanes * depth(classes), across = round_up(classes, kTile) * depth(lanes);
    return planes * (down > across ? down : across);
  }
  // Words of scores (c, r) and (c + 1, r): (lanes, depth), rows `room` apart, zeros past the last
  // class.
  static OLTR_INLINE Operand<float> down(Panels<float, panel> scores, int64_t count, int64_t lanes,
                                         int64_t room, float* out) {
    const int64_t deep = depth(count);
    for (int64_t r = 0; r < lanes; r += L)
      for (int64_t c0 = 0; c0 < 2 * deep; c0 += 2 * L) {
        Vec<float> square[planes][L];
        for (int i = 0; i < L; ++i) {
          const int64_t c = c0 + 2 * i;
          const auto score = [&](int64_t at) {
            return at < count ? load<float>(scores.at(at, r)) : Vec<float>{};
          };
          const Vec<float> low = score(c), high = score(c + 1);
          square[0][i] = joined(low, high);
          if constexpr (planes > 1) square[1][i] = joined(rest(low), rest(high));
        }
        for (int p = 0; p < planes; ++p) {
          transpose_square(square[p]);
          for (int i = 0; i < L; ++i)
            store<float>(out + (r + i) * room + p * deep + c0 / 2, square[p][i]);
        }
      }
    return {out, room, 1};
  }
  // Words of scores (c, r) and (c, r + 1): (count, depth), zeros past the last row.
  static OLTR_INLINE Operand<float> across(Panels<float, panel> scores, int64_t count,
                                           int64_t lanes, float* out) {
    const int64_t deep = depth(lanes), row = planes * deep;
    for (int p = 0; p < planes; ++p)
      for (int64_t r = 0; r < 2 * deep; r += 2 * L)  // whole lines of words
        for (int64_t c = 0; c < count; ++c)
          for (int64_t half = 0; half < 2; ++half) {
            const int64_t at = r + half * L;
            const Vec<float> v = at < lanes ? load<float>(scores.at(c, at)) : Vec<float>{};
            pack(p > 0 ? rest(v) : v, out + c * row + p * deep + at / 2);
          }
    return {out, row, 1};
  }
};

}  // namespace OLTR_ISA
}  // namespace oltr
