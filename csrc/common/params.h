// What each op's kernel is given: plain sizes and pointers, nothing of torch.
//
// B batch, C classes, D width. Every matrix is contiguous and row-major. "acc" is the accumulator
// type: double when the op's dtype is float64, float otherwise. Absent inputs and outputs are null.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace oltr {

// How products of float32 inputs may be computed, as torch.get_float32_matmul_precision() names it.
// kMedium: of operands rounded to bfloat16, summed in float, where the processor has it.
enum class Precision : int32_t { kHighest, kHigh, kMedium };

struct Sizes {
  int64_t batch = 0, classes = 0, width = 0;
};

// out = softmax(x keys' + key_bias) memory; lse = log-sum-exp of the logits.
struct MemoryAttentionForward {
  Sizes size;
  Dtype dtype;
  Matrix x, keys, key_bias, memory;  // (B,D) (C,D) (C) (C,D)
  MutableMatrix out, lse;            // (B,D) dtype, (B) acc
  Precision precision = Precision::kHighest;
};
struct MemoryAttentionBackward {
  Sizes size;
  Dtype dtype;
  Matrix grad_out, x, keys, key_bias, memory, out, lse;
  MutableMatrix grad_x, grad_keys, grad_key_bias, grad_memory;  // grad_memory may be absent
  Precision precision = Precision::kHighest;
};

// distance = min_c |x - memory_c|, index = its class.
struct NearestCentroidForward {
  Sizes size;
  Dtype dtype;
  Matrix x, memory;
  MutableMatrix distance;  // (B) dtype
  int64_t* index;          // (B)
  Precision precision = Precision::kHighest;
};
struct NearestCentroidBackward {
  Sizes size;
  Dtype dtype;
  Matrix grad_distance, x, memory;
  const int64_t* index;
  MutableMatrix grad_x, grad_memory;  // grad_memory may be absent; else it is zeroed here
};

// The dynamic meta-embedding: scale / max(d, eps) * (x + tanh(x Ws' + bs) * memory_feature).
struct MetaEmbeddingForward {
  Sizes size;
  Dtype dtype;
  double scale, eps;
  Matrix x, memory, keys, key_bias, selector_weight, selector_bias;  // Ws (D,D), bs (D)
  MutableMatrix embedding, memory_feature, selector;                 // (B,D) dtype
  MutableMatrix distance, lse;                                       // (B) acc
  int64_t* nearest;                                                  // (B)
  Precision precision = Precision::kHighest;
  bool nearest_given = false;  // distance and nearest hold what nearest_centroid says
};
struct MetaEmbeddingBackward {
  Sizes size;
  Dtype dtype;
  double scale, eps;
  Matrix grad_embedding, grad_memory_feature, grad_selector;  // (B,D) dtype; the last two optional
  Matrix grad_distance;                                       // (B) acc; optional
  Matrix x, memory, keys, key_bias, selector_weight;
  Matrix memory_feature, selector, distance, lse;
  const int64_t* nearest;
  MutableMatrix grad_x, grad_memory, grad_keys, grad_key_bias, grad_selector_weight,
      grad_selector_bias;  // grad_memory may be absent
  Precision precision = Precision::kHighest;
};

// logits = scale * v / (1 + |v|) . weight_c / |weight_c|
struct CosineLogitsForward {
  Sizes size;
  Dtype dtype;
  double scale;
  Matrix v, weight;
  MutableMatrix logits;  // (B,C) dtype
  Precision precision = Precision::kHighest;
};
struct CosineLogitsBackward {
  Sizes size;
  Dtype dtype;
  double scale;
  Matrix grad_logits, v, weight;
  MutableMatrix grad_v, grad_weight;
  Precision precision = Precision::kHighest;
};

// Cross-entropy of the cosine logits plus log_prior, label-smoothed, one loss a row.
// Of a shard of the bank the target C stands for a class of another shard, the loss lacks its lse,
// and smoothing runs over the `others` too. Its sum over shards with the lse of all is the loss.
constexpr int64_t kNoShard = -1;

struct CosineCrossEntropyForward {
  Sizes size;
  Dtype dtype;
  double scale, label_smoothing;
  int64_t ignore_index;
  Matrix v, weight, log_prior;  // log_prior (C) acc, may be absent; -inf removes a class
  const int64_t* target;        // (B)
  MutableMatrix loss, lse;      // (B) acc; an ignored row has loss 0
  MutableMatrix counted;        // () acc, the number of rows not ignored
  Precision precision = Precision::kHighest;
  int64_t others = kNoShard;  // possible classes of other shards
};
struct CosineCrossEntropyBackward {
  Sizes size;
  Dtype dtype;
  double scale, label_smoothing;
  int64_t ignore_index;
  Matrix grad_loss, v, weight, log_prior, lse;  // grad_loss (B) acc
  const int64_t* target;
  MutableMatrix grad_v, grad_weight;
  Precision precision = Precision::kHighest;
  int64_t others = kNoShard;
};

// attract + repel_weight * clamp(margin - R, 0, 1e6), see cpu/disc_centroids_loss.h.
struct DiscCentroidsLossForward {
  Sizes size;
  Dtype dtype;
  double margin, repel_weight;
  Matrix x, centroids;
  const int64_t* target;
  MutableMatrix loss;  // () acc
  double* sums;  // (1 + 2 D) for the backward: 1 where the repel clamp is open, sums of x and c
};
struct DiscCentroidsLossBackward {
  Sizes size;
  Dtype dtype;
  double repel_weight;
  Matrix grad_loss;  // () acc
  const double* sums;
  bool official;  // the released code's centroid gradient of the attract term
  Matrix x, centroids;
  const int64_t* target;
  MutableMatrix grad_x, grad_centroids;
};

// means_c = mean of the rows with target c (zero for an empty class), counts_c = their number.
struct ClassMeansForward {
  Sizes size;
  Dtype dtype;
  Matrix x;
  const int64_t* target;
  MutableMatrix means;
  int64_t* counts;
  // On a GPU only: the labels sorted, and their rows in that order, equal labels as they came.
  const int64_t *sorted = nullptr, *order = nullptr;
};
struct ClassMeansBackward {
  Sizes size;
  Dtype dtype;
  Matrix grad_means;
  const int64_t* target;
  const int64_t* counts;
  MutableMatrix grad_x;
};

// Every op once: tables of kernels and registrations are made of this list.
#define OLTR_EACH_OP(OP)                       \
  OP(MemoryAttention, memory_attention)        \
  OP(NearestCentroid, nearest_centroid)        \
  OP(MetaEmbedding, meta_embedding)            \
  OP(CosineLogits, cosine_logits)              \
  OP(CosineCrossEntropy, cosine_cross_entropy) \
  OP(DiscCentroidsLoss, disc_centroids_loss)   \
  OP(ClassMeans, class_means)

}  // namespace oltr
