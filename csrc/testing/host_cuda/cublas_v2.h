// A host's stand-in for cuBLAS: cublasGemmEx as its documentation has it, column-major, in plain
// loops, with the combinations of types and the leading dimensions that it accepts.
#pragma once

#include <cuda_runtime.h>

#include "common/dtype.h"

using cublasHandle_t = struct cublasContext*;
enum cublasStatus_t {
  CUBLAS_STATUS_SUCCESS = 0,
  CUBLAS_STATUS_INVALID_VALUE = 7,
  CUBLAS_STATUS_NOT_SUPPORTED = 15
};
enum cublasOperation_t { CUBLAS_OP_N = 0, CUBLAS_OP_T = 1 };
enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_64F = 1, CUDA_R_16F = 2, CUDA_R_16BF = 14 };
enum cublasComputeType_t {
  CUBLAS_COMPUTE_32F = 68,
  CUBLAS_COMPUTE_64F = 70,
  CUBLAS_COMPUTE_32F_FAST_16BF = 75,
  CUBLAS_COMPUTE_32F_FAST_TF32 = 77
};
enum cublasGemmAlgo_t { CUBLAS_GEMM_DEFAULT = -1 };
enum cublasMath_t {
  CUBLAS_DEFAULT_MATH = 0,
  CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION = 16
};
inline cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* mode) {
  *mode = CUBLAS_DEFAULT_MATH;
  return CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t) {
  return CUBLAS_STATUS_SUCCESS;
}
inline const char* cublasGetStatusString(cublasStatus_t status) {
  return status == CUBLAS_STATUS_SUCCESS         ? "the operation completed successfully"
         : status == CUBLAS_STATUS_INVALID_VALUE ? "an unsupported value or parameter was passed"
                                                 : "the functionality is not supported";
}

namespace host_cuda {

inline oltr::Dtype dtype_of(cudaDataType_t type) {
  return type == CUDA_R_32F   ? oltr::Dtype::kFloat32
         : type == CUDA_R_64F ? oltr::Dtype::kFloat64
         : type == CUDA_R_16F ? oltr::Dtype::kFloat16
                              : oltr::Dtype::kBFloat16;
}

// As the units for products see a float32 operand; TF32 by cutting, the worse of what they may do.
inline double rounded(double value, cublasComputeType_t) { return value; }
inline float rounded(float value, cublasComputeType_t compute) {
  if (compute == CUBLAS_COMPUTE_32F_FAST_16BF)
    return oltr::bfloat16_to_float(oltr::float_to_bfloat16(value));
  if (compute == CUBLAS_COMPUTE_32F_FAST_TF32)
    return oltr::bits_to_float(oltr::float_to_bits(value) & ~0x1fffu);
  return value;
}

template <class Sum>
Sum element(const void* data, cudaDataType_t type, int64_t at) {
  Sum value = 0;
  oltr::convert_in(data, dtype_of(type), at, 1, &value);
  return value;
}

template <class Sum>
void multiply(cublasOperation_t op_a, cublasOperation_t op_b, int m, int n, int k, Sum alpha,
              const void* a, int lda, const void* b, int ldb, cudaDataType_t type, Sum beta,
              void* c, cudaDataType_t c_type, int ldc, cublasComputeType_t compute) {
  const auto read = [&](const void* data, int64_t at) {
    return rounded(element<Sum>(data, type, at), compute);
  };
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < m; ++i) {
      Sum sum = 0;
      for (int64_t l = 0; l < k; ++l)
        sum += read(a, op_a == CUBLAS_OP_N ? l * lda + i : i * lda + l) *
               read(b, op_b == CUBLAS_OP_N ? j * ldb + l : l * ldb + j);
      sum *= alpha;
      if (beta != 0) sum += beta * element<Sum>(c, c_type, j * ldc + i);
      oltr::convert_out(&sum, 1, c, dtype_of(c_type), j * ldc + i);
    }
  }
}

}  // namespace host_cuda

inline cublasStatus_t cublasGemmEx(cublasHandle_t, cublasOperation_t op_a, cublasOperation_t op_b,
                                   int m, int n, int k, const void* alpha, const void* a,
                                   cudaDataType_t a_type, int lda, const void* b,
                                   cudaDataType_t b_type, int ldb, const void* beta, void* c,
                                   cudaDataType_t c_type, int ldc, cublasComputeType_t compute,
                                   cublasGemmAlgo_t) {
  const auto at_least_one = [](int rows) { return rows > 1 ? rows : 1; };
  if (m < 0 || n < 0 || k < 0 || lda < at_least_one(op_a == CUBLAS_OP_N ? m : k) ||
      ldb < at_least_one(op_b == CUBLAS_OP_N ? k : n) || ldc < at_least_one(m))
    return CUBLAS_STATUS_INVALID_VALUE;
  const bool wide = compute == CUBLAS_COMPUTE_64F;
  const bool same = a_type == b_type && (c_type == a_type || (c_type == CUDA_R_32F && !wide));
  const bool fast = compute != CUBLAS_COMPUTE_32F && !wide;  // for float32 operands alone
  if (!same || (a_type == CUDA_R_64F) != wide || (fast && a_type != CUDA_R_32F))
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (wide)
    host_cuda::multiply(op_a, op_b, m, n, k, *static_cast<const double*>(alpha), a, lda, b, ldb,
                        a_type, *static_cast<const double*>(beta), c, c_type, ldc, compute);
  else
    host_cuda::multiply(op_a, op_b, m, n, k, *static_cast<const float*>(alpha), a, lda, b, ldb,
                        a_type, *static_cast<const float*>(beta), c, c_type, ldc, compute);
  return CUBLAS_STATUS_SUCCESS;
}
