// How a launch is cut, as plain numbers: the kernels and `_C.plan` share it. No CUDA header here.
#pragma once

#include <cstdint>

namespace oltr::cuda {

constexpr int kWarp = 32;

struct Launch {
  int64_t blocks, threads, shared_bytes;
};

// One block a row; its warps take the classes in turns and join their winners in shared memory.
inline Launch nearest_centroid_launch(int64_t B, int64_t accumulator_bytes) {
  constexpr int64_t warps = 8;
  return {B, warps * kWarp, warps * (accumulator_bytes + 8)};
}

}  // namespace oltr::cuda
