// Rows of a large output, written once. A fresh output has no memory behind it yet, and a fault for
// every page of a gradient as large as the bank costs as much as half its products. So the kernel
// is asked for huge pages (as numpy does), and for them a few at a time.
#pragma once

#include "cpu/rows.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace oltr {
namespace OLTR_ISA {

class Output {
 public:
  OLTR_INLINE Output(MutableMatrix out, int64_t width)
      : out_(out), width_(width), row_bytes_(width * dtype_bytes(out.dtype)) {}

  // Once, before any task writes: `rows` rows in all.
  OLTR_INLINE void prepare(int64_t rows) const {
#if defined(MADV_HUGEPAGE)
    const uintptr_t first = address(0, kHuge - 1), last = address(rows, 0);
    // malloc maps what is larger than this by itself; other memory is not ours to advise on.
    constexpr uintptr_t kOwnMapping = uintptr_t{32} << 20;
    if (out_.data != nullptr && last > first + kOwnMapping)
      madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: may fail
#else
    (void)rows;
#endif
  }

  // Rows [first, first + n) from `in`; a task writes its rows in order, up to row `end`.
  template <class T>
  OLTR_INLINE void write(const T* in, int64_t in_row, int64_t first, int64_t n, int64_t end) {
#if defined(MADV_POPULATE_WRITE)
    if (ready_ == 0) ready_ = address(first, kHuge - 1);
    const uintptr_t need = address(first + n, kHuge - 1), stop = address(end, 0);
    for (; ready_ < need && ready_ + kHuge <= stop; ready_ += kHuge)
      madvise(reinterpret_cast<void*>(ready_), kHuge, MADV_POPULATE_WRITE);
#else
    (void)end;
#endif
    for (int64_t i = 0; i < n; ++i)
      convert_out(in + i * in_row, width_, out_.data, out_.dtype, (first + i) * width_);
  }

 private:
  static constexpr uintptr_t kHuge = uintptr_t{2} << 20;

  // Where a row begins, rounded down to a huge page once `up` is added.
  OLTR_INLINE uintptr_t address(int64_t row, uintptr_t up) const {
    const uintptr_t at = reinterpret_cast<uintptr_t>(out_.data) +
                         static_cast<uintptr_t>(row) * static_cast<uintptr_t>(row_bytes_);
    return (at + up) / kHuge * kHuge;
  }

  MutableMatrix out_;
  int64_t width_, row_bytes_;
  uintptr_t ready_ = 0;  // memory of this task's rows below this address has been asked for
};

}  // namespace OLTR_ISA
}  // namespace oltr
