// Products by cuBLAS, on the handle (and so on the stream) that is given.
#include "cuda/product_cublas.h"

#include <cublas_v2.h>

#include <limits>

namespace oltr::cuda {
namespace {

cudaDataType_t data_type(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return CUDA_R_32F;
    case Dtype::kFloat64:
      return CUDA_R_64F;
    case Dtype::kBFloat16:
      return CUDA_R_16BF;
    case Dtype::kFloat16:
      return CUDA_R_16F;
  }
  return CUDA_R_32F;
}

cublasComputeType_t compute_type(Dtype dtype, Precision precision) {
  if (dtype == Dtype::kFloat64) return CUBLAS_COMPUTE_64F;
  if (dtype != Dtype::kFloat32 || precision == Precision::kHighest) return CUBLAS_COMPUTE_32F;
  return precision == Precision::kHigh ? CUBLAS_COMPUTE_32F_FAST_TF32
                                       : CUBLAS_COMPUTE_32F_FAST_16BF;
}

// The handle is torch's: its mode may allow TF32, or sums of halves in half precision.
class ExactMode {
 public:
  explicit ExactMode(cublasHandle_t handle) : handle_(handle) {
    cublasGetMathMode(handle_, &before_);
    cublasSetMathMode(handle_,
                      static_cast<cublasMath_t>(CUBLAS_DEFAULT_MATH |
                                                CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION));
  }
  ~ExactMode() { cublasSetMathMode(handle_, before_); }

 private:
  cublasHandle_t handle_;
  cublasMath_t before_ = CUBLAS_DEFAULT_MATH;
};

}  // namespace

Status product_cublas(void* handle, const Product& p) {
  for (const int64_t n : {p.m, p.n, p.k, p.a.stride, p.b.stride, p.out_stride})
    if (n > std::numeric_limits<int>::max()) return "a product beyond the library's 32-bit sizes";
  const auto blas = static_cast<cublasHandle_t>(handle);
  const ExactMode mode(blas);
  const float one = 1, beta = p.add ? 1.0f : 0.0f;
  const double wide_one = 1, wide_beta = beta;
  const bool wide = p.dtype == Dtype::kFloat64;
  // cuBLAS is column-major: a row-major matrix is its transpose there, and out' = b' a'.
  const auto operation = [](const Operand& o) { return o.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
  const cublasStatus_t status = cublasGemmEx(
      blas, operation(p.b), operation(p.a), static_cast<int>(p.n), static_cast<int>(p.m),
      static_cast<int>(p.k), wide ? static_cast<const void*>(&wide_one) : &one, p.b.data,
      data_type(p.dtype), static_cast<int>(p.b.stride), p.a.data, data_type(p.dtype),
      static_cast<int>(p.a.stride), wide ? static_cast<const void*>(&wide_beta) : &beta, p.out,
      data_type(p.out_dtype), static_cast<int>(p.out_stride), compute_type(p.dtype, p.precision),
      CUBLAS_GEMM_DEFAULT);
  return status == CUBLAS_STATUS_SUCCESS ? nullptr : cublasGetStatusString(status);
}

}  // namespace oltr::cuda
