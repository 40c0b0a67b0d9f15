// The twin of the processor's tiles against the processor: every bit of a product.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "cpu/cpu_features.h"
#include "testing/tiles.h"

#if defined(OLTR_AMX)
#define OLTR_ISA tiles_of_the_processor
#define OLTR_VECTOR_BYTES 16
#include "cpu/tile_product.h"

namespace oltr::testing {
namespace {

// Pairs of finite bfloat16 of every size: zeros, subnormals, and some whose products overflow.
std::vector<float> random_words(int64_t n, int lowest, int highest, std::mt19937& random) {
  std::vector<float> words(n);
  for (float& word : words) {
    uint32_t bits = 0;
    for (const int shift : {0, 16}) {
      const uint32_t exponent = lowest + random() % (highest - lowest + 1);
      bits |= (exponent << 7 | (random() & 0x807f)) << shift;
    }
    std::memcpy(&word, &bits, sizeof word);
  }
  return words;
}

TEST(Tiles, TheTwinDoesWhatTheProcessorDoes) {
  if (*tiles_refused() != '\0') GTEST_SKIP() << "no tiles here: " << tiles_refused();
  using namespace tiles_of_the_processor;
  const TileSession session;
  std::mt19937 random(1);
  const struct {
    int lowest, highest;  // biased exponents
  } ranges[] = {{120, 134}, {0, 70}, {55, 75}, {0, 254}, {186, 200}};
  for (const auto range : ranges)
    for (const auto& [m, n, k] : {std::array<int64_t, 3>{16, 16, 16}, {64, 16, 48}, {48, 80, 272}})
      for (const bool accumulate : {false, true}) {
        const auto a = random_words(m * k, range.lowest, range.highest, random);
        const auto b = random_words(n * k, range.lowest, range.highest, random);
        std::vector<float> got(m * n), want(m * n);
        for (int64_t i = 0; i < m * n; ++i)
          got[i] = want[i] = std::ldexp(1.f, static_cast<int>(random() % 200) - 140);
        tile_product<1>(
            {k, {a.data(), k, 1}, {b.data(), kTile, kTile * k}, {got.data(), n, kTile}, accumulate},
            m, n);
        twin_product({m, n, k, a.data(), b.data(), want.data(), accumulate});
        for (int64_t i = 0; i < m * n; ++i) {
          if (std::isnan(want[i]) && std::isnan(got[i])) continue;
          ASSERT_EQ(float_to_bits(got[i]), float_to_bits(want[i]))
              << "entry " << i << ", exponents " << range.lowest << " to " << range.highest;
        }
      }
}

}  // namespace
}  // namespace oltr::testing
#endif
