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

// Products of bfloat16 pairs summed in float32; 0 where the processor has no such instruction.
extern "C" double bf16_gflops(int threads, double seconds) {
#ifdef __AVX512BF16__
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
