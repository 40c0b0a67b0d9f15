// Matrix products, the one thing that a library does for the kernels: cuBLAS on the device
// (product_cublas.cpp); the tests on the host bring a cuBLAS of plain loops.
#pragma once

#include <cstdint>

#include "common/params.h"

namespace oltr::cuda {

// null, or what failed.
using Status = const char*;

// A row-major operand; `stride` elements from one stored row to the next.
struct Operand {
  const void* data;
  int64_t stride;
  bool transposed = false;  // stored as its transpose
};

// out (m,n) = a (m,k) b (k,n), added to what is there where `add`. Sums run in float, in double for
// float64 operands.
struct Product {
  int64_t m, n, k;
  Operand a, b;
  Dtype dtype;  // of both operands
  void* out;
  int64_t out_stride;
  Dtype out_dtype;  // that of the operands, or float32
  bool add;
  Precision precision;  // of float32 operands
};

}  // namespace oltr::cuda
