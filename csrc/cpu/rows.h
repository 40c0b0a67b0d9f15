// Views of the inputs in the accumulator type: rows converted only when their type differs.
#pragma once

#include "common/params.h"
#include "common/plan.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace oltr {
namespace OLTR_ISA {

template <class T>
struct NativeDtype;
template <>
struct NativeDtype<float> {
  static constexpr Dtype value = Dtype::kFloat32;
};
template <>
struct NativeDtype<double> {
  static constexpr Dtype value = Dtype::kFloat64;
};

// Rows [first, first + n) of a matrix of the given width; `scratch` holds n * width elements and is
// used only when a conversion is needed.
template <class T>
OLTR_INLINE const T* rows(Matrix m, int64_t first, int64_t n, int64_t width, T* scratch) {
  if (m.dtype == NativeDtype<T>::value) return static_cast<const T*>(m.data) + first * width;
  convert_in(m.data, m.dtype, first * width, n * width, scratch);
  return scratch;
}

// Runs f(i) for every task, on whatever threads there are.
template <class F>
OLTR_INLINE void parallel_tasks(const Parallel& parallel, int64_t tasks, const F& f) {
  if (tasks <= 0) return;
  parallel.run(
      tasks, [](void* context, int64_t i) { (*static_cast<const F*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// f(begin, end) over [0, n) in pieces of `grain`.
template <class F>
OLTR_INLINE void parallel_ranges(const Parallel& parallel, int64_t n, int64_t grain, const F& f) {
  parallel_tasks(parallel, div_up(n, grain), [&](int64_t i) {
    const int64_t begin = i * grain;
    f(begin, begin + grain < n ? begin + grain : n);
  });
}

constexpr int64_t kRowGrain = 16;  // rows of a batch that a task takes
constexpr int64_t kConverted =
    16384;  // elements that a task converts; fewer are not worth a thread

// A whole matrix in the accumulator type: the caller's memory when it has that type already.
template <class T>
class Converted {
 public:
  OLTR_INLINE Converted(Matrix m, int64_t n, const Parallel& parallel)
      : given_(m.data == nullptr || m.dtype == NativeDtype<T>::value),
        scratch_(given_ ? 0 : n),
        data_(given_ ? static_cast<const T*>(m.data) : scratch_.data()) {
    if (given_) return;
    parallel_ranges(parallel, n, kConverted, [&](int64_t begin, int64_t end) {
      convert_in(m.data, m.dtype, begin, end - begin, scratch_.data() + begin);
    });
  }
  OLTR_INLINE const T* data() const { return data_; }
  OLTR_INLINE const T& operator[](int64_t i) const { return data_[i]; }

 private:
  bool given_;
  Buffer<T> scratch_;
  const T* data_;
};

template <class T>
OLTR_INLINE void convert_all(const T* in, int64_t n, MutableMatrix out, const Parallel& parallel) {
  parallel_ranges(parallel, n, kConverted, [&](int64_t begin, int64_t end) {
    convert_out(in + begin, end - begin, out.data, out.dtype, begin);
  });
}

}  // namespace OLTR_ISA
}  // namespace oltr
