// The ops on a GPU: on torch's current stream, with torch's cuBLAS handle and memory.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <cstdlib>

#include "cuda/kernels.h"
#include "cuda/product_cublas.h"
#include "oltr_cuda_sources.h"
#include "torch/class_means.h"
#include "torch/cosine_cross_entropy.h"
#include "torch/cosine_logits.h"
#include "torch/disc_centroids_loss.h"
#include "torch/memory_attention.h"
#include "torch/meta_embedding.h"
#include "torch/nearest_centroid.h"

// What this library was built from; benchmarks/evidence.py reads it.
extern "C" __attribute__((used, visibility("default"))) const char oltr_cuda_sources[] =
    "oltr_cuda_sources=" OLTR_CUDA_SOURCES;

namespace oltr {
namespace {

// For tuning: OLTR_EXT_CUDA_CHUNK_MB is what a chunk of classes may occupy (cuda/launch.h), and
// OLTR_EXT_CUDA_FUSED=0 keeps to chunks.
int64_t setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}
cuda::Device describe(int32_t device) {
  const int64_t megabytes = setting("OLTR_EXT_CUDA_CHUNK_MB", 0);
  cuda::Device out{megabytes > 0 ? megabytes << 20 : cuda::kChunkBytes};
  int major = 0, multiprocessors = 0, shared_bytes = 0;
  const bool known =
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) ==
          cudaSuccess &&
      cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) ==
          cudaSuccess;
  if (!known || major < 8 || setting("OLTR_EXT_CUDA_FUSED", 1) == 0) return out;
  out.multiprocessors = multiprocessors;
  out.shared_bytes = shared_bytes;
  return out;
}

// With torch's handle, which its first user in a thread makes. An op without products is none, so
// that it may be the first thing captured in a graph, where a handle cannot be made.
cuda::Status multiply(const cuda::Product& p) {
  void* blas = nullptr;
  if (torch_get_current_cuda_blas_handle(&blas) != 0) return "torch has no cuBLAS handle";
  return cuda::product_cublas(blas, p);
}

struct Cuda {
  template <class Params>
  static void run(const char* op, const Tensor& lead, const Params& p) {
    const int32_t device = lead.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device);
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    const cuda::Device about = describe(device);
    // Freed when this returns, for whoever comes next on this stream.
    const Tensor workspace =
        torch::stable::new_empty(lead, {cuda::workspace_bytes(p, about)}, ScalarType::Byte);
    cuda::Queue queue{static_cast<cudaStream_t>(stream), multiply, workspace.mutable_data_ptr(),
                      about};
    cuda::enqueue(p, queue);
    if (queue.error != nullptr) fail(op, queue.error);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(oltr_ext, CUDA, m) {
#define OLTR_IMPL(Op, op)            \
  m.impl(#op, TORCH_BOX(&op<Cuda>)); \
  m.impl(#op "_backward", TORCH_BOX(&op##_backward<Cuda>));
  OLTR_EACH_OP(OLTR_IMPL)
#undef OLTR_IMPL
}

}  // namespace oltr
