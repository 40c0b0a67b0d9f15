// What every kernel is written with: elements and their accumulators, reductions over a warp and a
// block, and the few things that are spelled differently in testing/host_cuda, which runs the same
// kernels on the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/dtype.h"
#include "common/merge.h"
#include "cuda/launch.h"

#if defined(__CUDACC__)
#define OLTR_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define OLTR_LAUNCH(kernel, l, stream, ...)                                       \
  kernel<<<static_cast<unsigned>((l).blocks), static_cast<unsigned>((l).threads), \
           static_cast<size_t>((l).shared_bytes), stream>>>(__VA_ARGS__)
#define OLTR_PRAGMA(text) _Pragma(#text)
// A loop of loads that do not wait for one another: `n` of them are under way at once.
#define OLTR_UNROLL(n) OLTR_PRAGMA(unroll n)
#endif

namespace oltr::cuda {

// --- elements -----------------------------------------------------------------------------------

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class S>
struct ElementOf {
  using Acc = float;
};
template <>
struct ElementOf<double> {
  using Acc = double;
};
template <class S>
using Acc = typename ElementOf<S>::Acc;

template <class S>
struct DtypeOf;
template <>
struct DtypeOf<float> {
  static constexpr Dtype value = Dtype::kFloat32;
};
template <>
struct DtypeOf<double> {
  static constexpr Dtype value = Dtype::kFloat64;
};
template <>
struct DtypeOf<BFloat16> {
  static constexpr Dtype value = Dtype::kBFloat16;
};
template <>
struct DtypeOf<Float16> {
  static constexpr Dtype value = Dtype::kFloat16;
};

// f(S{}) with the element type of `dtype`.
template <class F>
void with_element(Dtype dtype, F f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f(float{});
    case Dtype::kFloat64:
      return f(double{});
    case Dtype::kBFloat16:
      return f(BFloat16{});
    case Dtype::kFloat16:
      return f(Float16{});
  }
}

// common/dtype.h has the conversions in arithmetic: they specify what the instructions do.
__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(BFloat16 v) { return bfloat16_to_float(v.bits); }
__device__ inline float widen(Float16 v) {
#if defined(__CUDA_ARCH__)
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
#else
  return float16_to_float(v.bits);
#endif
}

template <class S>
__device__ inline S narrow(Acc<S> v) {
  return v;
}
template <>
__device__ inline BFloat16 narrow<BFloat16>(float v) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  BFloat16 h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
  return h;
#else
  return {float_to_bfloat16(v)};
#endif
}
template <>
__device__ inline Float16 narrow<Float16>(float v) {
#if defined(__CUDA_ARCH__)
  Float16 h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h.bits) : "f"(v));
  return h;
#else
  return {float_to_float16(v)};
#endif
}

// --- reductions, in one fixed order -------------------------------------------------------------

struct Add {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
// NaN never wins: `a` starts as a number.
struct Largest {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b > a ? b : a;
  }
};
struct Smallest {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// In every lane.
template <class T, class Join>
__device__ T warp_reduce(T v, Join join) {
  for (int step = kWarp / 2; step > 0; step /= 2) v = join(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}

// In every thread. `shared` holds kSharedBytes, which the block may use again at once.
template <class T, class Join>
__device__ T block_reduce(T v, Join join, unsigned char* shared) {
  static_assert(sizeof(T) * kWarps <= kSharedBytes, "");
  T* values = reinterpret_cast<T*>(shared);
  v = warp_reduce(v, join);
  __syncthreads();  // the last reduction's readers are done
  if (lane_index() == 0) values[warp_index()] = v;
  __syncthreads();
  v = values[0];
  for (int w = 1; w < kWarps; ++w) v = join(v, values[w]);
  return v;
}

// --- loads --------------------------------------------------------------------------------------

// What no thread writes while the kernel runs. The compiler may load it ahead of stores, and does not
// have to take each store for one to this place: else a loop that stores has one load under way.
template <class T>
__device__ inline T read(const T* at) {
  return __ldg(at);
}
__device__ inline BFloat16 read(const BFloat16* at) { return {__ldg(&at->bits)}; }
__device__ inline Float16 read(const Float16* at) { return {__ldg(&at->bits)}; }

// n elements that one instruction loads, or two.
template <class T, int n>
struct alignas(n * sizeof(T) < 16 ? n * sizeof(T) : 16) Pack {
  T v[n];
};
// As `read`, and in 16 bytes at a time.
template <int n, class T>
__device__ Pack<T, n> load_pack(const T* aligned) {
#if defined(__CUDA_ARCH__)
  Pack<T, n> pack;
  static_assert(sizeof(pack) % sizeof(float4) == 0, "");
  for (size_t i = 0; i < sizeof(pack) / sizeof(float4); ++i)
    reinterpret_cast<float4*>(&pack)[i] = __ldg(reinterpret_cast<const float4*>(aligned) + i);
  return pack;
#else
  return *reinterpret_cast<const Pack<T, n>*>(aligned);
#endif
}
// The same where only `left` elements are there; zeros for the others.
template <int n, class T>
__device__ Pack<T, n> load_pack(const T* aligned, int64_t left) {
  if (left >= n) return load_pack<n>(aligned);
  Pack<T, n> pack{};
  for (int i = 0; i < n; ++i)
    if (i < left) pack.v[i] = read(aligned + i);
  return pack;
}
template <class T, int n>
__device__ void store_pack(T* aligned, const Pack<T, n>& pack) {
  *reinterpret_cast<Pack<T, n>*>(aligned) = pack;
}

// --- rows ---------------------------------------------------------------------------------------

// Columns that a thread takes at once.
constexpr int kColumns = 4;

// The block calls f(c, left) for its threads' packs of columns [c, c + kColumns) of a row, of which
// `left` are there: all but in the last one.
template <class F>
__device__ void for_each_pack(int64_t count, F f) {
  const int64_t whole = count / kColumns * kColumns;
  OLTR_UNROLL(4)
  for (int64_t c = kColumns * threadIdx.x; c < whole; c += kColumns * kThreads) f(c, kColumns);
  if (whole < count && threadIdx.x == whole / kColumns % kThreads)
    f(whole, static_cast<int>(count - whole));
}

// Sum over `width` elements, in every lane, of term(i); the warp's lanes take turns.
template <class T, class Term>
__device__ T warp_sum(int64_t width, Term term) {
  T sum = 0;
  OLTR_UNROLL(4)
  for (int64_t i = lane_index(); i < width; i += kWarp) sum += term(i);
  return warp_reduce(sum, Add());
}
// The same over a block.
template <class T, class Term>
__device__ T block_sum(int64_t width, unsigned char* shared, Term term) {
  T sum = 0;
  OLTR_UNROLL(4)
  for (int64_t i = threadIdx.x; i < width; i += kThreads) sum += term(i);
  return block_reduce(sum, Add(), shared);
}

// The warp calls f(i) for every i in [begin, end) whose label is `label`, in order.
template <class F>
__device__ void for_each_labelled(const int64_t* labels, int64_t begin, int64_t end, int64_t label,
                                  F f) {
  for (int64_t first = begin; first < end; first += kWarp) {
    const int64_t mine = first + lane_index();
    unsigned found = __ballot_sync(kAllLanes, mine < end && labels[mine] == label);
    for (; found != 0; found &= found - 1) f(first + __ffs(static_cast<int>(found)) - 1);
  }
}
// Whether row `i` is the first one with its label: it is the one that writes for all of them.
__device__ inline bool first_labelled(const int64_t* labels, int64_t i) {
  for (int64_t first = 0; first < i; first += kWarp) {
    const int64_t mine = first + lane_index();
    if (__ballot_sync(kAllLanes, mine < i && labels[mine] == labels[i]) != 0) return false;
  }
  return true;
}

}  // namespace oltr::cuda
