// Features of any size, on every CPU table: see testing/extremes.h.
#include "testing/extremes.h"

#include "testing/tables.h"

namespace oltr::testing {
namespace {

// Few rows, where tables multiply exactly, and as many as tiles split float32 from.
constexpr Sizes kSizes[] = {{5, 70, 19}, {100, 130, 33}};

TEST(Extremes, TheNearestClassScales) {
  thread_count = 2;
  for (const KernelTable* table : tables())
    for (const Sizes size : kSizes)
      if (!slow(table, size)) expect_nearest_scales(*table, size);
}

TEST(Extremes, OneBankOfAllSizes) {
  for (const KernelTable* table : tables()) expect_nearest_of_mixed_sizes(*table);
}

TEST(Extremes, FlatRowsFindThemselves) {
  thread_count = 2;
  for (const KernelTable* table : tables())
    if (!slow(table, {12, 40, 4096})) expect_nearest_of_flat_rows(*table);
}

TEST(Extremes, NanAndInfinity) {
  for (const KernelTable* table : tables()) expect_nearest_of_nan_and_infinity(*table);
}

TEST(Extremes, TheMetaEmbeddingScales) {
  thread_count = 2;
  for (const KernelTable* table : tables()) expect_embedding_of_subnormal_numbers(*table);
  for (const KernelTable* table : tables())
    for (const Sizes size : kSizes)
      if (!slow(table, size)) expect_embedding_scales(*table, size);
}

}  // namespace
}  // namespace oltr::testing
