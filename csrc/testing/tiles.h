// One product by tiles, for the test that holds the twin to the processor.
#pragma once

#include <cstdint>

namespace oltr::testing {

struct TileArrays {
  int64_t m, n, k;     // words of k
  const float *a, *b;  // (m, k); panels of 16 columns, each (k, 16)
  float* c;            // (m, n)
  bool accumulate;
};
void twin_product(const TileArrays& t);

}  // namespace oltr::testing
