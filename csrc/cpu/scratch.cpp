#include "cpu/scratch.h"

#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace oltr {
namespace {

constexpr size_t kSmall = size_t{64} << 10;  // malloc keeps these well by itself
constexpr size_t kKept = size_t{64} << 20;   // bytes kept at most

struct Block {
  void* data;
  size_t bytes;
};

// Leaked on purpose: threads may free scratch while the process ends.
struct Pool {
  std::mutex mutex;
  std::vector<Block> free;
  size_t bytes = 0;
};
Pool& pool() {
  static Pool* const p = new Pool;
  return *p;
}

// What a caller sees, from whichever thread.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(size_t bytes) {
    std::snprintf(text_, sizeof text_, "oltr_ext: cannot allocate %zu bytes of scratch", bytes);
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[80];
};

size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

void* scratch_allocate(size_t bytes) {
  bytes = rounded(bytes > 0 ? bytes : 1);
  if (bytes >= kSmall) {
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    for (size_t i = p.free.size(); i-- > 0;) {
      if (p.free[i].bytes != bytes) continue;
      void* data = p.free[i].data;
      p.free.erase(p.free.begin() + static_cast<std::ptrdiff_t>(i));
      p.bytes -= bytes;
      return data;
    }
  }
  void* data = std::aligned_alloc(64, bytes);
  if (data == nullptr) throw OutOfMemory(bytes);
  return data;
}

// Blocks of sizes no longer asked for are the oldest, and go first.
void scratch_free(void* data, size_t bytes) noexcept {
  bytes = rounded(bytes > 0 ? bytes : 1);
  if (bytes < kSmall || bytes > kKept) return std::free(data);
  Pool& p = pool();
  const std::lock_guard<std::mutex> lock(p.mutex);
  try {
    p.free.push_back({data, bytes});
  } catch (...) {
    return std::free(data);
  }
  p.bytes += bytes;
  while (p.bytes > kKept) {
    std::free(p.free.front().data);
    p.bytes -= p.free.front().bytes;
    p.free.erase(p.free.begin());
  }
}

}  // namespace oltr
