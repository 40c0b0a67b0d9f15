// Rows of a large output, written once. A fresh output has no memory behind it yet, and a fault for
// every page of a gradient as large as the bank costs as much as half its products. So the kernel
// is asked for huge pages (as numpy does), and for them a few at a time. Whole lines of a
// half type go past the caches, which then need not read them first; those of float, twice as much, do
// better by way of the last one.
#pragma once

#include "cpu/rows.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace oltr {
namespace OLTR_ISA {

class Output {
 public:
  OLTR_INLINE Output(MutableMatrix out, int64_t rows, int64_t width)
      : out_(out),
        rows_(rows),
        width_(width),
        row_bytes_(width * dtype_bytes(out.dtype)),
        streamed_(kStreams && dtype_bytes(out.dtype) == 2 && rows * row_bytes_ >= kLarge &&
                  row_bytes_ % kLine == 0 && reinterpret_cast<uintptr_t>(out.data) % kLine == 0) {}
  OLTR_INLINE ~Output() {
    if (streamed_) finish_streams();
  }
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  // Once, before any task writes.
  OLTR_INLINE void prepare() const {
#if defined(MADV_HUGEPAGE)
    const uintptr_t first = address(0, kHuge - 1), last = address(rows_, 0);
    // Whole pages of this output alone; smaller ones malloc has at hand.
    if (out_.data != nullptr && rows_ * row_bytes_ >= kLarge && last > first)
      madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: may fail
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
    const int64_t line = kLine / dtype_bytes(out_.dtype);
    for (int64_t i = 0; i < n; ++i) {
      const T* from = in + i * in_row;
      const int64_t to = (first + i) * width_;
      if (!streamed_) {
        convert_out(from, width_, out_.data, out_.dtype, to);
        continue;
      }
      for (int64_t d = 0; d < width_; d += line) {
        alignas(kLine) double whole[kLine / 2];  // of which a line of a half type takes a quarter
        convert_out(from + d, line, whole, out_.dtype, 0);
        stream_line(static_cast<char*>(out_.data) + (to + d) * (kLine / line), whole);
      }
    }
  }

 private:
  static constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  static constexpr int64_t kLine = 64;
  static constexpr int64_t kLarge = int64_t{4} << 20;  // bytes; less may stay in a cache

  // Where a row begins, rounded down to a huge page once `up` is added.
  OLTR_INLINE uintptr_t address(int64_t row, uintptr_t up) const {
    const uintptr_t at = reinterpret_cast<uintptr_t>(out_.data) +
                         static_cast<uintptr_t>(row) * static_cast<uintptr_t>(row_bytes_);
    return (at + up) / kHuge * kHuge;
  }

  MutableMatrix out_;
  int64_t rows_, width_, row_bytes_;
  bool streamed_;
  uintptr_t ready_ = 0;  // memory of this task's rows below this address has been asked for
};

}  // namespace OLTR_ISA
}  // namespace oltr
