// A host's stand-in for the CUDA runtime: the .cu sources compile and run here unchanged.
//
// Each CUDA thread is a fiber. A fiber runs until it must wait for others (a barrier, a warp
// exchange) and the next one is drawn at random, so that code which forgets to wait reads what has
// not been written yet. One warp, also drawn at random, goes first for a long while, so that code
// which forgets to let others read finds that overwritten. Blocks run one after another. What a
// kernel may use is what stands here.
#pragma once

#include <math.h>
#include <ucontext.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "a CUDA error"; }
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace host_cuda {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 * 1024, kLeft = 4096;

// A copy to shared memory that its thread has not waited for yet; `from` null: of zeros.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  int group;
};
inline void perform(const Copy& c) {
  if (c.from == nullptr)
    std::memset(c.to, 0, c.bytes);
  else
    std::memcpy(c.to, c.from, c.bytes);
}

// Of one block's fibers after another's, and of the next launch's.
inline std::vector<std::unique_ptr<unsigned char[]>> stacks;

struct Fiber {
  ucontext_t context;
  dim3 thread;
  int exchanges;              // within the warp, so far
  unsigned char slot[2][32];  // what this lane gives; two, for the next exchange may start early
  std::vector<Copy> copies;
  int groups;  // of copies, ended so far
};

struct Block {
  dim3 index, threads, blocks;
  std::vector<unsigned char> shared;
  std::vector<Fiber> fibers;
  std::vector<std::vector<int>> runnable;  // by warp
  size_t favoured;                         // the warp that goes first
  std::vector<std::vector<int>> in_warp;   // fibers that wait for their warp's exchange
  std::vector<int> at_barrier;
  int live;
  ucontext_t launcher;
  Fiber* current = nullptr;
  const std::function<void()>* kernel = nullptr;
  std::mt19937 random;
};
inline Block* block = nullptr;
inline unsigned seed = 0;  // of the next launch's schedule

[[noreturn]] inline void stop(const char* why) {
  std::fprintf(stderr, "host_cuda: %s\n", why);
  std::abort();
}

inline int self() { return static_cast<int>(block->current - block->fibers.data()); }

// Leaves `from` for one of the fibers that can run.
inline void run_another(ucontext_t& from) {
  const size_t warps = block->runnable.size();
  if (block->random() % 256 == 0) block->favoured = block->random() % warps;
  for (size_t i = 0; i < warps && block->runnable[block->favoured].empty(); ++i)
    block->favoured = (block->favoured + 1) % warps;
  std::vector<int>& able = block->runnable[block->favoured];
  if (able.empty()) stop("every thread waits: not all of a block reach the same barrier");
  std::swap(able[block->random() % able.size()], able.back());
  block->current = &block->fibers[able.back()];
  able.pop_back();
  if (&block->current->context != &from) swapcontext(&from, &block->current->context);
}

inline void release(std::vector<int>& waiting) {
  for (const int f : waiting) block->runnable[f / kWarp].push_back(f);
  waiting.clear();
}

inline void barrier() {
  Fiber* me = block->current;
  block->at_barrier.push_back(self());
  if (static_cast<int>(block->at_barrier.size()) == block->live) release(block->at_barrier);
  run_another(me->context);
}

// Gives `value` to the warp and returns once every lane has given its own: read(lane) gets them.
template <class T>
class Exchange {
 public:
  explicit Exchange(T value) : me_(block->current) {
    static_assert(sizeof(T) <= sizeof(me_->slot[0]), "");
    parity_ = ++me_->exchanges % 2;
    std::memcpy(me_->slot[parity_], &value, sizeof(T));
    first_ = self() / kWarp * kWarp;
    std::vector<int>& waiting = block->in_warp[first_ / kWarp];
    waiting.push_back(self());
    if (waiting.size() == kWarp) release(waiting);
    run_another(me_->context);
  }
  int lane() const { return static_cast<int>(me_->thread.x) % kWarp; }
  T read(int lane) const {
    const Fiber& f = block->fibers[first_ + lane];
    T value;
    std::memcpy(&value, f.slot[parity_], sizeof(T));
    return value;
  }

 private:
  Fiber* me_;
  int first_, parity_;
};

template <class T>
T exchange(T value, int lane) {
  return Exchange<T>(value).read(lane);
}
template <class T>
T exchange_xor(T value, int lane_mask) {
  const Exchange<T> all(value);
  return all.read(all.lane() ^ lane_mask);
}
inline unsigned ballot(bool mine) {
  const Exchange<bool> all(mine);
  unsigned votes = 0;
  for (int lane = 0; lane < kWarp; ++lane) votes |= unsigned{all.read(lane)} << lane;
  return votes;
}

// Loads of eight sixteen-byte rows that do not each lie in banks of their own.
inline int64_t bank_conflicts = 0;
inline void count_conflicts(const Exchange<const void*>& rows) {
  if (rows.lane() % 8 != 0) return;
  unsigned banks = 0;
  for (int i = 0; i < 8; ++i)
    banks |= 1u << reinterpret_cast<uintptr_t>(rows.read(rows.lane() + i)) / 16 % 8;
  if (banks != 0xff) ++bank_conflicts;
}

// A copy comes about at once or at the last moment, as it is drawn.
inline void copy_later(void* to, const void* from, size_t bytes) {
  const Copy copy{to, from, bytes, block->current->groups};
  if (block->random() % 2 == 0)
    perform(copy);
  else
    block->current->copies.push_back(copy);
}
inline void commit_copies() { ++block->current->groups; }
inline void wait_copies(int left) {
  Fiber& me = *block->current;
  size_t done = 0;
  while (done < me.copies.size() && me.copies[done].group < me.groups - left)
    perform(me.copies[done++]);
  me.copies.erase(me.copies.begin(), me.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

inline void enter() {
  (*block->kernel)();
  Fiber* me = block->current;
  if (!me->copies.empty()) stop("a thread leaves the kernel with copies under way");
  if (!block->in_warp[self() / kWarp].empty()) stop("lanes wait for one that leaves the kernel");
  if (--block->live == 0) setcontext(&block->launcher);
  if (static_cast<int>(block->at_barrier.size()) == block->live) release(block->at_barrier);
  run_another(me->context);
}

inline void run_block(Block& b) {
  block = &b;
  b.live = static_cast<int>(b.fibers.size());
  for (int t = 0; t < b.live; ++t) {
    Fiber& f = b.fibers[t];
    f.thread = {static_cast<unsigned>(t), 0, 0};
    f.exchanges = f.groups = 0;
    getcontext(&f.context);
    unsigned char* stack = stacks[static_cast<size_t>(t)].get();
#if defined(__SANITIZE_ADDRESS__)
    // The frame of `enter`, which is left for good, at the stack's end.
    __asan_unpoison_memory_region(stack + kStack - kLeft, kLeft);
#endif
    f.context.uc_stack.ss_sp = stack;
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
    // Else the sanitizer forgets, at every switch, what lies on the stack it comes to
    // (findings/asan-fiber-switch.sh).
    f.context.uc_stack = {};
    b.runnable[t / kWarp].push_back(t);
  }
  b.favoured = b.random() % b.runnable.size();
  run_another(b.launcher);
  block = nullptr;
}

template <class Kernel, class... Args>
void launch(Kernel kernel, int64_t blocks, int64_t threads, int64_t shared_bytes, Args... args) {
  const std::function<void()> body = [&] { kernel(args...); };
  Block b;
  b.random.seed(seed++);
  b.kernel = &body;
  b.threads.x = static_cast<unsigned>(threads);
  b.blocks.x = static_cast<unsigned>(blocks);
  b.fibers = std::vector<Fiber>(static_cast<size_t>(threads));
  while (stacks.size() < b.fibers.size()) stacks.emplace_back(new unsigned char[kStack]);
  b.in_warp.resize(static_cast<size_t>(threads) / kWarp);
  b.runnable.resize(b.in_warp.size());
  for (int64_t i = 0; i < blocks; ++i) {
    b.index = {static_cast<unsigned>(i), 0, 0};
    // Its own memory for each block, of its very size: NaN until written, fenced by the sanitizer.
    b.shared = std::vector<unsigned char>(static_cast<size_t>(shared_bytes), 0xff);
    run_block(b);
  }
}

}  // namespace host_cuda

#define threadIdx (host_cuda::block->current->thread)
#define blockIdx (host_cuda::block->index)
#define blockDim (host_cuda::block->threads)
#define gridDim (host_cuda::block->blocks)
#define __syncthreads() host_cuda::barrier()
#define __shfl_sync(mask, value, lane) host_cuda::exchange(value, lane)
#define __shfl_xor_sync(mask, value, lane_mask) host_cuda::exchange_xor(value, lane_mask)
#define __ballot_sync(mask, predicate) host_cuda::ballot(predicate)
template <class T>
T __ldg(const T* at) {
  return *at;
}
inline int __ffs(int v) { return __builtin_ffs(v); }

#define OLTR_UNROLL(n)
#define OLTR_DYNAMIC_SHARED(name) unsigned char* name = host_cuda::block->shared.data()
#define OLTR_LAUNCH(kernel, l, stream, ...) \
  ((void)(stream),                          \
   host_cuda::launch(kernel, (l).blocks, (l).threads, (l).shared_bytes, __VA_ARGS__))
