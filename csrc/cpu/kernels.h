// The CPU kernels: one entry an op and direction, chosen for the processor at run time.
//
// Contract: pointers are valid for the sizes given, labels lie in [0, C) (or equal ignore_index
// where the op has one), C >= 1 and D >= 1. B may be 0.
#pragma once

#include "common/params.h"
#include "cpu/parallel.h"

namespace oltr {

struct KernelTable {
  const char* isa;
  void (*memory_attention_forward)(const MemoryAttentionForward&, const Parallel&);
  void (*memory_attention_backward)(const MemoryAttentionBackward&, const Parallel&);
  void (*nearest_centroid_forward)(const NearestCentroidForward&, const Parallel&);
  void (*nearest_centroid_backward)(const NearestCentroidBackward&, const Parallel&);
  void (*meta_embedding_forward)(const MetaEmbeddingForward&, const Parallel&);
  void (*meta_embedding_backward)(const MetaEmbeddingBackward&, const Parallel&);
  void (*cosine_logits_forward)(const CosineLogitsForward&, const Parallel&);
  void (*cosine_logits_backward)(const CosineLogitsBackward&, const Parallel&);
  void (*cosine_cross_entropy_forward)(const CosineCrossEntropyForward&, const Parallel&);
  void (*cosine_cross_entropy_backward)(const CosineCrossEntropyBackward&, const Parallel&);
  void (*disc_centroids_forward)(const DiscCentroidsForward&, const Parallel&);
  void (*disc_centroids_backward)(const DiscCentroidsBackward&, const Parallel&);
  void (*class_means_forward)(const ClassMeansForward&, const Parallel&);
  void (*class_means_backward)(const ClassMeansBackward&, const Parallel&);
};

// One an instruction set; a build holds those of its processor.
extern const KernelTable kernels_generic, kernels_avx2, kernels_avx512, kernels_avx512_bf16,
    kernels_amx, kernels_neon, kernels_neon_bf16;

// The table for this processor (see cpu_features.h).
const KernelTable& kernels();

}  // namespace oltr
