// How work over the bank is cut, as plain numbers: the kernels, their tests and `_C.plan` share it.
// No CUDA header here.
#pragma once

#include <cstdint>

#include "common/params.h"
#include "common/plan.h"

namespace oltr::cuda {

constexpr int kWarp = 32;
constexpr int kWarps = 8;  // a block
constexpr int kThreads = kWarps * kWarp;
// Every reduction of a block goes through one value a warp.
constexpr int64_t kSharedBytes = kWarps * 16;

struct Launch {
  int64_t blocks, threads, shared_bytes;
};
// `work` shared out over blocks, `each` to a block.
inline Launch blocks_of(int64_t work, int64_t each = 1) {
  return {div_up(work, each), kThreads, kSharedBytes};
}

// What a chunk of classes may occupy while it passes through the kernels: rows of the bank, logits
// and what is made of them, so that they stay in the L2 cache between one kernel and the next.
constexpr int64_t kChunkBytes = int64_t{24} << 20;
// Chunks are cut in multiples of this, and so are the rows of logits, for the products' sake.
constexpr int64_t kChunkUnit = 128;

// Classes in a chunk, when each one occupies `class_bytes`.
inline int64_t chunk_classes(int64_t C, int64_t class_bytes, int64_t chunk_bytes) {
  const int64_t most = chunk_bytes / (class_bytes > 0 ? class_bytes : 1) / kChunkUnit * kChunkUnit;
  return even_tile(C, most > kChunkUnit ? most : kChunkUnit, kChunkUnit);
}

struct ElementBytes {
  int64_t stored, accumulated;
};
// Chunks of a forward pass: per row logits, what they become, and products for distances.
inline int64_t forward_chunk(Sizes size, ElementBytes bytes, bool attention, bool distances,
                             int64_t chunk_bytes) {
  const int64_t a = attention ? 1 : 0, d = distances ? 1 : 0;
  const int64_t row = a * (bytes.accumulated + bytes.stored) + d * bytes.accumulated;
  return chunk_classes(size.classes, size.batch * row + (1 + a) * size.width * bytes.stored,
                       chunk_bytes);
}
// Chunks of attention's backward: logits, gradients of the weights, weights, gradients of the logits;
// two banks and their gradients.
inline int64_t backward_chunk(Sizes size, ElementBytes bytes, int64_t chunk_bytes) {
  return chunk_classes(
      size.classes,
      size.batch * 2 * (bytes.accumulated + bytes.stored) + 4 * size.width * bytes.stored,
      chunk_bytes);
}

// Rows and columns of logits that one block turns into their gradients.
constexpr int64_t kGradientColumns = 64, kGradientRows = 64;

}  // namespace oltr::cuda
