// The host side of the launchers: workspace cut into arrays, kernels and products enqueued until
// something fails.
#pragma once

#include <limits>

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace oltr::cuda {

// Cuts the workspace, or only measures it: with null as its base it yields null arrays and counts.
// A launcher lists its arrays once, in a struct made from this, for both.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* array(int64_t n) {
    char* at = base_ == nullptr ? nullptr : base_ + used_;
    used_ += round_up(n * static_cast<int64_t>(sizeof(T)), 256);
    return reinterpret_cast<T*>(at);
  }
  int64_t bytes() const { return used_; }

 private:
  char* base_;
  int64_t used_ = 0;
};

// Elements of a matrix from row `row` on.
template <class S>
const S* rows_of(Matrix m, int64_t row = 0, int64_t width = 0) {
  return m.data == nullptr ? nullptr : static_cast<const S*>(m.data) + row * width;
}
template <class S>
S* rows_of(MutableMatrix m, int64_t row = 0, int64_t width = 0) {
  return m.data == nullptr ? nullptr : static_cast<S*>(m.data) + row * width;
}

// More has to be asked for.
constexpr int64_t kFreeSharedBytes = 48 << 10;

template <class... Parameters, class... Args>
void launch(Queue& queue, void (*kernel)(Parameters...), Launch l, const Args&... args) {
  if (queue.error != nullptr || l.blocks == 0) return;
  if (l.blocks > std::numeric_limits<int32_t>::max()) {
    queue.error = "more blocks than a grid can have";
    return;
  }
  // What fails leaves its error for cudaGetLastError, which takes it away.
  if (l.shared_bytes <= kFreeSharedBytes ||
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(l.shared_bytes)) == cudaSuccess)
    OLTR_LAUNCH(kernel, l, queue.stream, args...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) queue.error = cudaGetErrorString(error);
}

inline void set_zero(Queue& queue, void* data, int64_t bytes) {
  if (queue.error != nullptr || bytes == 0 || data == nullptr) return;
  const cudaError_t error = cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), queue.stream);
  if (error != cudaSuccess) queue.error = cudaGetErrorString(error);
}
inline void set_zero(Queue& queue, MutableMatrix m, int64_t n) {
  set_zero(queue, m.data, n * dtype_bytes(m.dtype));
}

template <class S>
Operand plain(const S* data, int64_t stride) {
  return {data, stride, false};
}
// `data` holds the transpose of what is meant.
template <class S>
Operand transposed(const S* data, int64_t stride) {
  return {data, stride, true};
}

// out (m,n) = a (m,k) b (k,n), or out += that; elements of a and b are of type S.
template <class S, class Out>
void product(Queue& queue, Precision precision, int64_t m, int64_t n, int64_t k, Operand a,
             Operand b, Out* out, int64_t out_stride, bool add = false) {
  if (queue.error != nullptr || m == 0 || n == 0) return;
  queue.error = queue.multiply(
      {m, n, k, a, b, DtypeOf<S>::value, out, out_stride, DtypeOf<Out>::value, add, precision});
}

}  // namespace oltr::cuda
