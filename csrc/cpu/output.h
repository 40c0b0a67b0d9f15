// Rows of a large output, written once. A fresh output has no memory behind it yet: the kernel is
// asked for it a megabyte at a time, at half the cost of a fault for every page.
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

  // Rows [first, first + n) from `in`; the caller goes on to row `end`, in order.
  template <class T>
  OLTR_INLINE void write(const T* in, int64_t in_row, int64_t first, int64_t n, int64_t end) {
    populate(first, n, end);
    for (int64_t i = 0; i < n; ++i)
      convert_out(in + i * in_row, width_, out_.data, out_.dtype, (first + i) * width_);
  }

 private:
  OLTR_INLINE void populate(int64_t first, int64_t n, int64_t end) {
#if defined(MADV_POPULATE_WRITE)
    constexpr uintptr_t kPage = 4096, kChunk = uintptr_t{1} << 20;
    const uintptr_t base = reinterpret_cast<uintptr_t>(out_.data);
    const uintptr_t need = base + static_cast<uintptr_t>((first + n) * row_bytes_);
    const uintptr_t stop = (base + static_cast<uintptr_t>(end * row_bytes_)) / kPage * kPage;
    if (ready_ == 0)
      ready_ = (base + static_cast<uintptr_t>(first * row_bytes_) + kPage - 1) / kPage * kPage;
    while (ready_ < need && ready_ + kChunk <= stop) {
      madvise(reinterpret_cast<void*>(ready_), kChunk, MADV_POPULATE_WRITE);  // a hint: may fail
      ready_ += kChunk;
    }
#else
    (void)first, (void)n, (void)end;
#endif
  }

  MutableMatrix out_;
  int64_t width_, row_bytes_;
  uintptr_t ready_ = 0;  // memory below this address has been asked for
};

}  // namespace OLTR_ISA
}  // namespace oltr
