// Storage for one kernel call. Every buffer lies between fences: under AddressSanitizer touching
// one stops the program, otherwise `intact` sees what was written there. Outputs start as NaN, so
// what a kernel leaves out shows up.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>
#include <thread>
#include <vector>

#include "common/dtype.h"
#include "cpu/parallel.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace oltr::testing {

using Array = std::vector<double>;
using Labels = std::vector<int64_t>;

class Fenced {
 public:
  explicit Fenced(size_t bytes)
      : bytes_(bytes), all_(kFence + kLine + round_up(bytes) + kFence, kMark) {
    const auto first = reinterpret_cast<uintptr_t>(all_.data()) + kFence;
    before_ = kFence + (kLine - first % kLine) % kLine;  // torch's memory begins with a cache line
    ASAN_POISON_MEMORY_REGION(all_.data(), before_);
    ASAN_POISON_MEMORY_REGION(data() + bytes_, all_.size() - before_ - bytes_);
  }
  Fenced(const Fenced&) = delete;
  ~Fenced() { ASAN_UNPOISON_MEMORY_REGION(all_.data(), all_.size()); }

  unsigned char* data() { return all_.data() + before_; }
  bool intact() {
    ASAN_UNPOISON_MEMORY_REGION(all_.data(), all_.size());
    const auto marked = [](unsigned char b) { return b == kMark; };
    const auto first = all_.begin() + static_cast<std::ptrdiff_t>(before_);
    return std::all_of(all_.begin(), first, marked) &&
           std::all_of(first + static_cast<std::ptrdiff_t>(bytes_), all_.end(), marked);
  }

 private:
  static constexpr size_t kFence = 256, kLine = 64;
  static constexpr unsigned char kMark = 0xff;  // of any float type a NaN
  static size_t round_up(size_t n) { return (n + 7) / 8 * 8; }
  size_t bytes_, before_;
  std::vector<unsigned char> all_;
};

// Views for a kernel's params, in the op's dtype or in its accumulator type.
class Storage {
 public:
  explicit Storage(Dtype dtype) : dtype_(dtype) {}

  Dtype dtype() const { return dtype_; }
  Dtype accumulator() const {
    return dtype_ == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
  }
  Matrix in(const Array& a) { return in(a, dtype_); }
  Matrix in_acc(const Array& a) { return in(a, accumulator()); }
  const int64_t* in(const Labels& a) {
    void* to = add(a.size() * sizeof(int64_t));
    if (!a.empty()) std::memcpy(to, a.data(), a.size() * sizeof(int64_t));
    return static_cast<const int64_t*>(to);
  }
  MutableMatrix out(size_t n) { return {add(n * dtype_bytes(dtype_)), dtype_}; }
  MutableMatrix out_acc(size_t n) { return {add(n * dtype_bytes(accumulator())), accumulator()}; }
  int64_t* out_index(size_t n) { return static_cast<int64_t*>(add(n * sizeof(int64_t))); }

  bool intact() {
    for (Fenced& f : fenced_)
      if (!f.intact()) return false;
    return true;
  }

 private:
  Matrix in(const Array& a, Dtype dtype) {
    void* to = add(a.size() * dtype_bytes(dtype));
    convert_out(a.data(), static_cast<int64_t>(a.size()), to, dtype, 0);
    return {to, dtype};
  }
  void* add(size_t bytes) { return fenced_.emplace_back(bytes).data(); }

  Dtype dtype_;
  std::deque<Fenced> fenced_;
};

inline Array read(const MutableMatrix& m, size_t n) {
  Array a(n);
  convert_in(m.data, m.dtype, 0, static_cast<int64_t>(n), a.data());
  return a;
}
inline Array read(const int64_t* p, size_t n) { return Array(p, p + n); }

// As many threads as `thread_count` says, taking the tasks last first: a kernel must not care.
inline int thread_count = 1;

inline void run_tasks(int64_t tasks, void (*body)(void*, int64_t), void* context) {
  std::atomic<int64_t> left{tasks};
  const auto work = [&] {
    for (int64_t i = left.fetch_sub(1) - 1; i >= 0; i = left.fetch_sub(1) - 1) body(context, i);
  };
  std::vector<std::thread> threads;
  for (int t = 1; t < thread_count; ++t) threads.emplace_back(work);
  work();
  for (std::thread& t : threads) t.join();
}

inline const Parallel parallel{run_tasks};

}  // namespace oltr::testing
