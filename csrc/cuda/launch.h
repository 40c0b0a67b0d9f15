// How work over the bank is cut, as plain numbers: the kernels, their tests and `_C.plan` share it.
// No CUDA header here.
#pragma once

#include <cstdint>
#include <limits>

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

// What the launchers need to know of the device.
struct Device {
  int64_t chunk_bytes;                            // see kChunkBytes
  int64_t multiprocessors = 0, shared_bytes = 0;  // a block's shared memory; 0: do not fuse
};

// For plans where there is none to ask.
constexpr Device kH100{kChunkBytes, 132, 227 << 10};

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

// The fused forward passes (cuda/fused_tile.h), in which a block takes kFusedRows rows and two slabs of
// rows of the bank, or of two banks, at once.
constexpr int kFusedRows = 64;
constexpr int64_t kPartBytes = int64_t{128} << 20;  // that what all parts leave may take
constexpr int64_t kMostFused = int64_t{1} << 30;    // classes
// Blocks that share a multiprocessor, if it has the memory.
constexpr int fused_blocks(int64_t width) { return width <= 128 ? 2 : 1; }
constexpr int64_t fused_shared_bytes(int64_t width, int64_t slab) {
  return (kFusedRows + 4 * slab) * width * 2 +  // rows; two stages of two slabs
         kFusedRows * (slab + 8) * 2 +          // weights
         kWarps * 16 * slab * 4 +               // half of the products
         (4 * slab + kFusedRows) * 4;           // norms, factors
}
struct FusedPlan {
  int64_t width, slab;  // that the kernel is made for, the first not below D; 0: it is not fused
  int64_t row_blocks;   // of kFusedRows
  int64_t parts;        // of the bank, with a state each
  int64_t states;       // of a row: one a part, two where both slabs are of one bank
  int64_t shared_bytes;
};
inline FusedPlan fused_plan(Sizes size, bool attention, Device device) {
  FusedPlan plan{};
  // The smallest width, and of it the larger slab.
  constexpr int64_t kKernels[][2] = {{512, 16}, {512, 32}, {256, 32}, {128, 32}};
  for (const auto& [width, slab] : kKernels) {
    if (size.width > width || fused_shared_bytes(width, slab) > device.shared_bytes) continue;
    plan.width = width;
    plan.slab = slab;
  }
  if (plan.width == 0 || size.classes > kMostFused) return FusedPlan{};
  plan.shared_bytes = fused_shared_bytes(plan.width, plan.slab);
  plan.row_blocks = div_up(size.batch, kFusedRows);
  const int64_t tiles = div_up(size.classes, attention ? plan.slab : 2 * plan.slab);
  // Numbers that a part leaves: two states of four at most; recalled features.
  const int64_t left = size.batch * (8 + (attention ? size.width : 0));
  const int64_t held = kPartBytes / 4 / (left > 0 ? left : 1);
  const int64_t most = clamp(tiles, 1, clamp(held, 1, 2 * device.multiprocessors));
  const int64_t together =
      clamp(device.shared_bytes / plan.shared_bytes, 1, fused_blocks(plan.width));
  // Tiles in turn, of which a block costs two besides its own, and what the parts' merging takes: a
  // launch, and 2^20 numbers in the time of a tile at a width of 512.
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int64_t parts = 1; parts <= most; ++parts) {
    const int64_t turns = div_up(plan.row_blocks * parts, together * device.multiprocessors);
    const int64_t merging = (parts * left * (512 / plan.width) >> 20) + (parts > 1 ? 1 : 0);
    const int64_t cost = turns * (div_up(tiles, parts) + 2) + merging;
    if (cost >= least) continue;
    least = cost;
    plan.parts = parts;
  }
  plan.states = attention ? plan.parts : 2 * plan.parts;
  return plan;
}

// Rows and columns of logits that one block turns into their gradients.
constexpr int64_t kGradientColumns = 64, kGradientRows = 64;
// Classes, in whole chunks, whose gradients' sums over blocks of rows are held and then added up by one
// launch: as many as fit in a quarter of a chunk's bytes, so that few chunks need one of their own.
inline int64_t held_sums(Sizes size, int64_t chunk, int64_t accumulator_bytes,
                         int64_t chunk_bytes) {
  const int64_t parts = div_up(size.batch > 0 ? size.batch : 1, kGradientRows);
  const int64_t chunks = chunk_bytes / 4 / (parts * chunk * accumulator_bytes);
  return chunk * clamp(chunks, 1, div_up(size.classes, chunk));
}

}  // namespace oltr::cuda
