// A host's stand-in for the CUDA runtime: the .cu sources, included by a test, run here unchanged.
//
// Each CUDA thread is a fiber. A fiber runs until it must wait for others (a barrier, a warp
// exchange) and the next one is drawn at random, so that code which forgets to wait reads what has
// not been written yet. Blocks run one after another. What a kernel may use is what stands here.
#pragma once

#include <math.h>
#include <ucontext.h>

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

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace host_cuda {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<unsigned char[]> stack{new unsigned char[kStack]};
  dim3 thread;
  bool done = false;
  int barriers = 0;             // passed or waited at
  int exchanges = 0;            // likewise, within the warp
  unsigned char slot[2][8];     // what this lane gives; two, for the next exchange may start early
  std::function<bool()> ready;  // empty: can run
};

struct Block {
  dim3 index, threads, blocks;
  std::vector<unsigned char> shared;
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  Fiber* current = nullptr;
  const std::function<void()>* kernel = nullptr;
};
inline Block* block = nullptr;
inline unsigned seed = 0;  // of the next launch's schedule

inline void wait_until(std::function<bool()> ready) {
  Fiber* self = block->current;
  self->ready = std::move(ready);
  swapcontext(&self->context, &block->scheduler);
}

[[noreturn]] inline void stop(const char* why) {
  std::fprintf(stderr, "host_cuda: %s\n", why);
  std::abort();
}

inline void barrier() {
  const int mine = ++block->current->barriers;
  wait_until([mine] {
    for (const Fiber& f : block->fibers)
      if (!f.done && f.barriers < mine) return false;
    return true;
  });
}

template <class T>
T exchange_xor(T value, int lane_mask) {
  static_assert(sizeof(T) <= 8, "");
  Fiber* self = block->current;
  const int warp = static_cast<int>(self->thread.x) / kWarp * kWarp;
  const int mine = ++self->exchanges;
  std::memcpy(self->slot[mine % 2], &value, sizeof(T));
  wait_until([warp, mine] {
    for (int lane = 0; lane < kWarp; ++lane) {
      const Fiber& f = block->fibers[warp + lane];
      if (f.done) stop("a lane of the exchange has left the kernel");
      if (f.exchanges < mine) return false;
    }
    return true;
  });
  const int lane = static_cast<int>(self->thread.x) % kWarp ^ lane_mask;
  std::memcpy(&value, block->fibers[warp + lane].slot[mine % 2], sizeof(T));
  return value;
}

inline void enter() {
  (*block->kernel)();
  block->current->done = true;
}

inline void start(Fiber& f, unsigned thread) {
  f.thread = {thread, 0, 0};
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack.get();
  f.context.uc_stack.ss_size = kStack;
  f.context.uc_link = &block->scheduler;
  makecontext(&f.context, enter, 0);
}

inline void run_block(Block& b, std::mt19937& random) {
  block = &b;
  for (size_t t = 0; t < b.fibers.size(); ++t) start(b.fibers[t], static_cast<unsigned>(t));
  for (size_t left = b.fibers.size(); left > 0;) {
    const size_t first = random() % b.fibers.size();
    Fiber* next = nullptr;
    for (size_t i = 0; i < b.fibers.size() && next == nullptr; ++i) {
      Fiber& f = b.fibers[(first + i) % b.fibers.size()];
      if (!f.done && (!f.ready || f.ready())) next = &f;
    }
    if (next == nullptr) stop("every thread waits: not all of a block reach the same barrier");
    next->ready = nullptr;
    b.current = next;
    swapcontext(&b.scheduler, &next->context);
    left -= next->done;
  }
  block = nullptr;
}

template <class Kernel, class... Args>
void launch(Kernel kernel, int64_t blocks, int64_t threads, int64_t shared_bytes, Args... args) {
  std::mt19937 random(seed++);
  const std::function<void()> body = [&] { kernel(args...); };
  Block b;
  b.kernel = &body;
  b.threads.x = static_cast<unsigned>(threads);
  b.blocks.x = static_cast<unsigned>(blocks);
  for (int64_t i = 0; i < blocks; ++i) {
    b.index = {static_cast<unsigned>(i), 0, 0};
    b.shared.assign(static_cast<size_t>(shared_bytes), 0xff);  // NaN until written
    b.fibers = std::vector<Fiber>(static_cast<size_t>(threads));
    run_block(b, random);
  }
}

}  // namespace host_cuda

#define threadIdx (host_cuda::block->current->thread)
#define blockIdx (host_cuda::block->index)
#define blockDim (host_cuda::block->threads)
#define gridDim (host_cuda::block->blocks)
#define __syncthreads() host_cuda::barrier()
#define __shfl_xor_sync(mask, value, lane_mask) host_cuda::exchange_xor(value, lane_mask)

#define OLTR_DYNAMIC_SHARED(name) unsigned char* name = host_cuda::block->shared.data()
#define OLTR_LAUNCH(kernel, l, stream, ...) \
  ((void)(stream),                          \
   host_cuda::launch(kernel, (l).blocks, (l).threads, (l).shared_bytes, __VA_ARGS__))
