// The machine's ceilings, measured beside every benchmark: multiply-adds on registers alone, and
// reading memory. benchmarks/peaks.py compiles this at run time with -march=native.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <thread>
#include <vector>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / sizeof(float);
// Enough to hide a latency of 4 or 5 at two a cycle; with both factors they fit 16 registers.
constexpr int kSums = 12;
typedef float Vec __attribute__((vector_size(kBytes)));
typedef float Unaligned __attribute__((vector_size(kBytes), aligned(4), may_alias));

using Clock = std::chrono::steady_clock;

double since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Work a second over all threads: each repeats `chunk(thread)`, which returns the work it did,
// until `seconds` have passed. The slowest thread ends the measurement.
template <class Chunk>
double rate(int threads, double seconds, Chunk chunk) {
  std::atomic<int> waiting{threads};
  std::vector<double> work(threads), took(threads);
  auto run = [&](int thread) {
    chunk(thread);  // warms up caches and clocks
    for (--waiting; waiting > 0;) std::this_thread::yield();
    const auto begin = Clock::now();
    double sum = 0, now = 0;
    while ((now = since(begin)) < seconds) sum += chunk(thread);
    work[thread] = sum, took[thread] = now;
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (auto& other : others) other.join();
  double total = 0;
  for (double w : work) total += w;
  return total / *std::max_element(took.begin(), took.end());
}

volatile float sink;

void keep(const Vec (&sums)[kSums]) {
  float total = 0;
  for (const Vec& sum : sums)
    for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  sink = total;
}

}  // namespace

extern "C" double fma_gflops(int threads, double seconds) {
  constexpr int kRepeat = 10000;
  return 1e-9 * rate(threads, seconds, [](int thread) {
           const Vec factor = Vec{} + 0.999f, term = Vec{} + 1e-3f * (thread + 1);
           Vec sums[kSums];
           for (int i = 0; i < kSums; ++i) sums[i] = Vec{} + 0.1f * i;
           for (int n = 0; n < kRepeat; ++n)
#pragma GCC unroll 12
             for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + term;
           keep(sums);
           return 2.0 * kLanes * kSums * kRepeat;
         });
}

// Products of bfloat16 pairs summed in float32; 0 where the processor has no such instruction. On
// matrix tiles where it has them: four sums from four operands that stay in registers. Operands are
// numbers of all kinds, for with zeros the processor's clock is a fifth faster.
extern "C" double bf16_gflops(int threads, double seconds) {
#if defined(__AMX_BF16__) && defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 0;
  constexpr int kRepeat = 2000;
  return 1e-9 * rate(threads, seconds, [](int) {
           struct {
             unsigned char palette = 1, start = 0, reserved[14] = {};
             unsigned short bytes[16] = {};
             unsigned char rows[16] = {};
           } shape;
           for (int t = 0; t < 8; ++t) shape.bytes[t] = 64, shape.rows[t] = 16;
           asm volatile("ldtilecfg %0" ::"m"(shape));  // GCC 12's own function reads 8 bytes of it
           alignas(64) unsigned short numbers[4][512];
           unsigned random = 1;
           for (auto& tile : numbers)
             for (auto& n : tile) {
               random = random * 1664525u + 1013904223u;
               n = static_cast<unsigned short>(0x3f00 | (random >> 16 & 0x80ff));
             }
           _tile_loadd(4, numbers[0], 64);
           _tile_loadd(5, numbers[1], 64);
           _tile_loadd(6, numbers[2], 64);
           _tile_loadd(7, numbers[3], 64);
           _tile_zero(0);
           _tile_zero(1);
           _tile_zero(2);
           _tile_zero(3);
           for (int n = 0; n < kRepeat; ++n) {
             _tile_dpbf16ps(0, 4, 6);
             _tile_dpbf16ps(1, 4, 7);
             _tile_dpbf16ps(2, 5, 6);
             _tile_dpbf16ps(3, 5, 7);
           }
           _tile_release();
           return 4.0 * kRepeat * 2 * 16 * 16 * 32;
         });
#elif defined(__AVX512BF16__)
  constexpr int kRepeat = 10000;
  return 1e-9 * rate(threads, seconds, [](int thread) {
           const __m512bh a = _mm512_cvtne2ps_pbh(Vec{} + 0.5f, Vec{} + 0.25f);
           const __m512bh b = _mm512_cvtne2ps_pbh(Vec{} + 1.0f * (thread + 1), Vec{} - 1.0f);
           Vec sums[kSums];
           for (int i = 0; i < kSums; ++i) sums[i] = Vec{} + 0.1f * i;
           for (int n = 0; n < kRepeat; ++n)
#pragma GCC unroll 12
             for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbf16_ps(sums[i], a, b);
           keep(sums);
           return 4.0 * kLanes * kSums * kRepeat;
         });
#else
  (void)threads, (void)seconds;
  return 0;
#endif
}

// Each thread reads its own part of `data` again and again: the rate of the cache or memory that
// holds so many bytes.
extern "C" double read_gbytes(const float* data, size_t count, int threads, double seconds) {
  const size_t part = count / threads, step = size_t{kSums} * kLanes;
  return 1e-9 * rate(threads, seconds, [=](int thread) {
           const float* begin = data + thread * part;
           Vec sums[kSums] = {};
           size_t at = 0;
           for (; at + step <= part; at += step)
#pragma GCC unroll 12
             for (int i = 0; i < kSums; ++i)
               sums[i] += *reinterpret_cast<const Unaligned*>(begin + at + i * kLanes);
           keep(sums);
           return 4.0 * at;
         });
}
