// Tensor cores and asynchronous copies, from sm_80 on: one inline function an instruction. Beside the
// PTX stands what it does, lane by lane; that is what runs on the host.
#pragma once

#include <limits>

#include "cuda/device.h"

namespace oltr::cuda {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Bytes of a row of eight halves, the unit of both instructions below and of a copy.
constexpr int64_t kOctet = 16;

// Four 8 x 8 matrices of halves. Lane l names row l % 8 of matrix l / 8, sixteen bytes of shared
// memory, and gets of every matrix the pair at row l / 4, columns 2 (l % 4) and the next; transposed:
// at column l / 4, rows 2 (l % 4) and the next.
template <bool kTransposed = false>
__device__ inline void load_matrices(uint32_t (&pairs)[4], const void* row) {
#if defined(__CUDACC__)
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"(at)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pairs[0]), "=r"(pairs[1]), "=r"(pairs[2]), "=r"(pairs[3])
                 : "r"(at)
                 : "memory");
#else
  const host_cuda::Exchange<const void*> rows(row);
  host_cuda::count_conflicts(rows);
  const int across = rows.lane() / 4, along = rows.lane() % 4 * 2;
  for (int m = 0; m < 4; ++m) {
    uint16_t half[2];
    for (int i = 0; i < 2; ++i) {
      const int from = kTransposed ? along + i : across, column = kTransposed ? across : along + i;
      memcpy(&half[i], static_cast<const char*>(rows.read(8 * m + from)) + 2 * column, 2);
    }
    pairs[m] = half[0] | uint32_t{half[1]} << 16;
  }
#endif
}

// c (16,8) += a (16,16) b (16,8), summed in float. Lane l, with g = l / 4 and t = 2 (l % 4), holds
//   of a the pairs at row g, column t; row g + 8; column t + 8; both
//   of b the pairs at column g, row t; row t + 8
//   of c row g, columns t and t + 1; row g + 8.
template <class S>
__device__ inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1) {
  static_assert(sizeof(S) == 2, "");
#if defined(__CUDACC__)
  if constexpr (DtypeOf<S>::value == Dtype::kBFloat16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  struct Operands {
    S a[8], b[4];
  } mine;
  memcpy(mine.a, a, sizeof mine.a);
  memcpy(mine.b, &b0, 4);
  memcpy(mine.b + 2, &b1, 4);
  const host_cuda::Exchange<Operands> all(mine);
  for (int i = 0; i < 4; ++i) {
    const int row = all.lane() / 4 + i / 2 * 8, column = all.lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int pair = k % 8 / 2, high = k / 8;  // which lane of four, which of its pairs
      const S left = all.read(row % 8 * 4 + pair).a[(row / 8 + 2 * high) * 2 + k % 2];
      c[i] += widen(left) * widen(all.read(column * 4 + pair).b[high * 2 + k % 2]);
    }
  }
#endif
}

// The two halves of a pair.
template <class S>
__device__ inline float low_half(uint32_t pair) {
  return widen(S{static_cast<uint16_t>(pair & 0xffffu)});
}
template <class S>
__device__ inline float high_half(uint32_t pair) {
  return widen(S{static_cast<uint16_t>(pair >> 16)});
}

// Copies sixteen bytes to shared memory, or zeros if they are not `there` (then `global` is not read),
// some time before wait_copies returns for their group in this thread.
__device__ inline void copy_async(void* shared, const void* global, bool there) {
#if defined(__CUDACC__)
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(global),
               "r"(there ? 16 : 0)
               : "memory");
#else
  host_cuda::copy_later(shared, there ? global : nullptr, kOctet);
#endif
}
// Ends this thread's group of copies.
__device__ inline void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  host_cuda::commit_copies();
#endif
}
// Waits for all of this thread's groups but the last `left`.
template <int left>
__device__ inline void wait_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#else
  host_cuda::wait_copies(left);
#endif
}

// --- rows in shared memory ----------------------------------------------------------------------

// Where an octet of a row lies: those of eight rows at one column in banks of their own.
template <int kWidth>
__device__ inline int octet_at(int row, int octet) {
  return row * kWidth + (octet ^ (row & 7)) * 8;
}

__device__ inline int at_most(int most, int64_t n) { return n < most ? static_cast<int>(n) : most; }

// The block copies kRows rows of m (any,width) from `first` on; zeros from `end` and `width` on.
template <int kRows, int kWidth, class S>
__device__ __forceinline__ void copy_rows(S* to, const S* m, int64_t first, int64_t end,
                                          int64_t width) {
  constexpr int kOctets = kWidth / 8, kAtOnce = kThreads / kOctets;
  static_assert(2 * kAtOnce % 8 == 0 && kRows % kAtOnce == 0, "");
  const int octet = static_cast<int>(threadIdx.x) % kOctets;
  const int row = static_cast<int>(threadIdx.x) / kOctets;
  const int count = octet * 8 < width ? at_most(kRows, end - first) : 0;
  const S* from = m + (first + row) * width + octet * 8;
  // Two rows apart the octets lie alike.
  S* const place[2] = {to + octet_at<kWidth>(row, octet),
                       to + octet_at<kWidth>(row + kAtOnce, octet)};
  const auto copy = [&](auto there) {
    OLTR_UNROLL(16)
    for (int i = 0; i < kRows / kAtOnce; ++i)
      copy_async(place[i % 2] + i / 2 * 2 * kAtOnce * kWidth, from + i * kAtOnce * width,
                 there(row + i * kAtOnce));
  };
  if (count == kRows)
    copy([](int) { return true; });
  else
    copy([&](int r) { return r < count; });
}

}  // namespace oltr::cuda
