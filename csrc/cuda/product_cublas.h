#pragma once

#include "cuda/product.h"

namespace oltr::cuda {

// `handle` is a cublasHandle_t whose pointer mode is host, its default.
Status product_cublas(void* handle, const Product& p);

}  // namespace oltr::cuda
