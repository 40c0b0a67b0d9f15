// The kernel table of one instruction set: every op, the accumulator type chosen by its dtype.
#pragma once

#include "cpu/class_means.h"
#include "cpu/cosine_cross_entropy.h"
#include "cpu/cosine_logits.h"
#include "cpu/disc_centroids_loss.h"
#include "cpu/kernels.h"
#include "cpu/memory_attention.h"
#include "cpu/meta_embedding.h"
#include "cpu/nearest_centroid.h"

namespace oltr {
namespace OLTR_ISA {

// Products of bfloat16 where the op's precision allows; all else is done by the table of exact ones.
// A selection may be rounded at any precision: what it leaves over is measured.
template <class Params>
static bool rounded(const Params& p) {
  const bool medium = p.dtype == Dtype::kFloat32 && p.precision == Precision::kMedium;
  return medium || p.dtype == Dtype::kBFloat16;
}
#if defined(OLTR_TILES)
// To split the bank's rows costs as much as the products of some ninety rows of the batch save.
constexpr int64_t kSplitPays = 96;
template <class Params>
static bool split(const Params& p, bool may) {
  return may && p.dtype == Dtype::kFloat32 && p.size.batch >= kSplitPays;
}
#define OLTR_PRODUCT_ENTRY(Params, name)                               \
  static void name##_entry(const Params& p, const Parallel& threads) { \
    if (rounded(p))                                                    \
      name<Tiled<1>>(p, threads);                                      \
    else if (split(p, p.precision == Precision::kHigh))                \
      name<Tiled<2>>(p, threads);                                      \
    else                                                               \
      OLTR_EXACT_TABLE.name(p, threads);                               \
  }
#define OLTR_SELECT_ENTRY(Params, name)                                \
  static void name##_entry(const Params& p, const Parallel& threads) { \
    if (rounded(p))                                                    \
      name<Tiled<1>>(p, threads);                                      \
    else if (split(p, true))                                           \
      name<Tiled<2>>(p, threads);                                      \
    else                                                               \
      OLTR_EXACT_TABLE.name(p, threads);                               \
  }
// The exact embedding leaves the nearest class to tiles: however they round, candidates are measured.
#define OLTR_EMBED_ENTRY(Params, name)                                                            \
  static void name##_entry(const Params& p, const Parallel& threads) {                            \
    if (rounded(p)) return name<Tiled<1>>(p, threads);                                            \
    if (split(p, p.precision == Precision::kHigh)) return name<Tiled<2>>(p, threads);             \
    Params rest = p;                                                                              \
    rest.nearest_given = split(p, true);                                                          \
    if (rest.nearest_given)                                                                       \
      nearest_centroid_forward<Tiled<2>>({p.size, p.dtype, p.x, p.memory, p.distance, p.nearest}, \
                                         threads);                                                \
    OLTR_EXACT_TABLE.name(rest, threads);                                                         \
  }
#elif defined(OLTR_BF16_DOT)
#define OLTR_PRODUCT_ENTRY(Params, name)                               \
  static void name##_entry(const Params& p, const Parallel& threads) { \
    if (rounded(p))                                                    \
      name<Pairs>(p, threads);                                         \
    else                                                               \
      OLTR_EXACT_TABLE.name(p, threads);                               \
  }
#define OLTR_SELECT_ENTRY OLTR_PRODUCT_ENTRY
#define OLTR_EMBED_ENTRY OLTR_PRODUCT_ENTRY
#endif

#if defined(OLTR_EXACT_TABLE)
#define OLTR_ENTRY(Params, name)                                       \
  static void name##_entry(const Params& p, const Parallel& threads) { \
    OLTR_EXACT_TABLE.name(p, threads);                                 \
  }
#else
#define OLTR_ENTRY(Params, name)                                       \
  static void name##_entry(const Params& p, const Parallel& threads) { \
    if (p.dtype == Dtype::kFloat64)                                    \
      name<Exact<double>>(p, threads);                                 \
    else                                                               \
      name<Exact<float>>(p, threads);                                  \
  }
#define OLTR_PRODUCT_ENTRY OLTR_ENTRY
#define OLTR_SELECT_ENTRY OLTR_ENTRY
#define OLTR_EMBED_ENTRY OLTR_ENTRY
#endif

OLTR_PRODUCT_ENTRY(MemoryAttentionForward, memory_attention_forward)
OLTR_PRODUCT_ENTRY(MemoryAttentionBackward, memory_attention_backward)
OLTR_SELECT_ENTRY(NearestCentroidForward, nearest_centroid_forward)
OLTR_ENTRY(NearestCentroidBackward, nearest_centroid_backward)
OLTR_EMBED_ENTRY(MetaEmbeddingForward, meta_embedding_forward)
OLTR_PRODUCT_ENTRY(MetaEmbeddingBackward, meta_embedding_backward)
OLTR_PRODUCT_ENTRY(CosineLogitsForward, cosine_logits_forward)
OLTR_PRODUCT_ENTRY(CosineLogitsBackward, cosine_logits_backward)
OLTR_PRODUCT_ENTRY(CosineCrossEntropyForward, cosine_cross_entropy_forward)
OLTR_PRODUCT_ENTRY(CosineCrossEntropyBackward, cosine_cross_entropy_backward)
OLTR_ENTRY(DiscCentroidsLossForward, disc_centroids_loss_forward)
OLTR_ENTRY(DiscCentroidsLossBackward, disc_centroids_loss_backward)
OLTR_ENTRY(ClassMeansForward, class_means_forward)
OLTR_ENTRY(ClassMeansBackward, class_means_backward)
#undef OLTR_ENTRY
#undef OLTR_PRODUCT_ENTRY
#undef OLTR_SELECT_ENTRY
#undef OLTR_EMBED_ENTRY

constexpr KernelTable make_table(const char* isa) {
#define OLTR_ENTRIES(Op, op) , op##_forward_entry, op##_backward_entry
  return {isa OLTR_EACH_OP(OLTR_ENTRIES)};
#undef OLTR_ENTRIES
}

}  // namespace OLTR_ISA
}  // namespace oltr
