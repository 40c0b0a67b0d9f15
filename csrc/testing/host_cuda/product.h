// cuda::Products on the host: what product_cublas.cpp has to compute, as plain loops.
#pragma once

#include "cuda/product.h"

namespace host_cuda {

template <class Sum>
void multiply(const oltr::cuda::Product& p) {
  const auto at = [&](const oltr::cuda::Operand& o, int64_t row, int64_t column) {
    Sum value = 0;
    const int64_t i = o.transposed ? column * o.stride + row : row * o.stride + column;
    oltr::convert_in(o.data, p.dtype, i, 1, &value);
    return value;
  };
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      const int64_t to = i * p.out_stride + j;
      Sum sum = 0;
      for (int64_t k = 0; k < p.k; ++k) sum += at(p.a, i, k) * at(p.b, k, j);
      if (p.add) {
        Sum before = 0;
        oltr::convert_in(p.out, p.out_dtype, to, 1, &before);
        sum += before;
      }
      oltr::convert_out(&sum, 1, p.out, p.out_dtype, to);
    }
  }
}

inline oltr::cuda::Status product(void*, const oltr::cuda::Product& p) {
  p.dtype == oltr::Dtype::kFloat64 ? multiply<double>(p) : multiply<float>(p);
  return nullptr;
}

}  // namespace host_cuda
