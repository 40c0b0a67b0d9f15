// The ops on the CPU.
#include <atomic>

#include "cpu/kernels.h"
#include "torch/class_means.h"
#include "torch/cosine_cross_entropy.h"
#include "torch/cosine_logits.h"
#include "torch/disc_centroids_loss.h"
#include "torch/memory_attention.h"
#include "torch/meta_embedding.h"
#include "torch/nearest_centroid.h"

namespace oltr {
namespace {

// torch's intra-op pool. Its threads take the tasks one by one: these differ in length, and a thread
// may be late.
inline Parallel torch_threads() {
  return {[](int64_t tasks, void (*body)(void*, int64_t), void* context) {
    std::atomic<int64_t> next{0};
    torch::stable::parallel_for(0, tasks, 1, [&](int64_t, int64_t) {
      for (int64_t i = next++; i < tasks; i = next++) body(context, i);
    });
  }};
}

struct Cpu {
#define OLTR_CPU_RUN(Params, kernel)                             \
  static void run(const char*, const Tensor&, const Params& p) { \
    kernels().kernel(p, torch_threads());                        \
  }
  OLTR_CPU_RUN(MemoryAttentionForward, memory_attention_forward)
  OLTR_CPU_RUN(MemoryAttentionBackward, memory_attention_backward)
  OLTR_CPU_RUN(NearestCentroidForward, nearest_centroid_forward)
  OLTR_CPU_RUN(NearestCentroidBackward, nearest_centroid_backward)
  OLTR_CPU_RUN(MetaEmbeddingForward, meta_embedding_forward)
  OLTR_CPU_RUN(MetaEmbeddingBackward, meta_embedding_backward)
  OLTR_CPU_RUN(CosineLogitsForward, cosine_logits_forward)
  OLTR_CPU_RUN(CosineLogitsBackward, cosine_logits_backward)
  OLTR_CPU_RUN(CosineCrossEntropyForward, cosine_cross_entropy_forward)
  OLTR_CPU_RUN(CosineCrossEntropyBackward, cosine_cross_entropy_backward)
  OLTR_CPU_RUN(DiscCentroidsForward, disc_centroids_forward)
  OLTR_CPU_RUN(DiscCentroidsBackward, disc_centroids_backward)
  OLTR_CPU_RUN(ClassMeansForward, class_means_forward)
  OLTR_CPU_RUN(ClassMeansBackward, class_means_backward)
#undef OLTR_CPU_RUN
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(oltr_ext, CPU, m) {
  m.impl("memory_attention", TORCH_BOX(&memory_attention<Cpu>));
  m.impl("memory_attention_backward", TORCH_BOX(&memory_attention_backward<Cpu>));
  m.impl("nearest_centroid", TORCH_BOX(&nearest_centroid<Cpu>));
  m.impl("nearest_centroid_backward", TORCH_BOX(&nearest_centroid_backward<Cpu>));
  m.impl("meta_embedding", TORCH_BOX(&meta_embedding<Cpu>));
  m.impl("meta_embedding_backward", TORCH_BOX(&meta_embedding_backward<Cpu>));
  m.impl("cosine_logits", TORCH_BOX(&cosine_logits<Cpu>));
  m.impl("cosine_logits_backward", TORCH_BOX(&cosine_logits_backward<Cpu>));
  m.impl("cosine_cross_entropy", TORCH_BOX(&cosine_cross_entropy<Cpu>));
  m.impl("cosine_cross_entropy_backward", TORCH_BOX(&cosine_cross_entropy_backward<Cpu>));
  m.impl("disc_centroids_loss", TORCH_BOX(&disc_centroids_loss<Cpu>));
  m.impl("disc_centroids_loss_backward", TORCH_BOX(&disc_centroids_loss_backward<Cpu>));
  m.impl("class_means", TORCH_BOX(&class_means<Cpu>));
  m.impl("class_means_backward", TORCH_BOX(&class_means_backward<Cpu>));
}

}  // namespace oltr
