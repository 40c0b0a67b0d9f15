// What every CUDA glue file needs on top of glue.h: the tensor's device as the current one for the
// length of the call, and torch's current stream on it.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "torch/glue.h"

namespace oltr {

class CurrentDevice {
 public:
  explicit CurrentDevice(const Tensor& t)
      : index_(t.get_device_index()), guard_(t.get_device_index()) {}

  cudaStream_t stream() const {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace oltr
