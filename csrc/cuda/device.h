// The two things that are spelled differently on the device and in testing/host_cuda: a launch, and
// dynamic shared memory. A kernel that uses these runs on both.
#pragma once

#include <cuda_runtime.h>

#if defined(__CUDACC__)
#define OLTR_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define OLTR_LAUNCH(kernel, l, stream, ...)                                       \
  kernel<<<static_cast<unsigned>((l).blocks), static_cast<unsigned>((l).threads), \
           static_cast<size_t>((l).shared_bytes), stream>>>(__VA_ARGS__)
#endif
