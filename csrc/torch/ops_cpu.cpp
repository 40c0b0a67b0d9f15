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
#define OLTR_CPU_RUN(Op, op)                                           \
  static void run(const char*, const Tensor&, const Op##Forward& p) {  \
    kernels().op##_forward(p, torch_threads());                        \
  }                                                                    \
  static void run(const char*, const Tensor&, const Op##Backward& p) { \
    kernels().op##_backward(p, torch_threads());                       \
  }
  OLTR_EACH_OP(OLTR_CPU_RUN)
#undef OLTR_CPU_RUN
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(oltr_ext, CPU, m) {
#define OLTR_IMPL(Op, op)           \
  m.impl(#op, TORCH_BOX(&op<Cpu>)); \
  m.impl(#op "_backward", TORCH_BOX(&op##_backward<Cpu>));
  OLTR_EACH_OP(OLTR_IMPL)
#undef OLTR_IMPL
}

}  // namespace oltr
