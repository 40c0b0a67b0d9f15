// run_op OP TABLE DTYPE B C D forward|full: one call of an op on one thread, for what counts
// instructions (benchmarks/arm_instructions.py). The table "none" does nothing: what remains is this
// program's own share.
#include <cstdio>
#include <string>

#include "cpu/cpu_features.h"
#include "testing/loss_ops.h"
#include "testing/ops.h"

namespace oltr::testing {
namespace {

template <class Params>
void nothing(const Params&, const Parallel&) {}

constexpr KernelTable kNone{"none",  nothing, nothing, nothing, nothing, nothing, nothing, nothing,
                            nothing, nothing, nothing, nothing, nothing, nothing, nothing};

const KernelTable* table_of(const std::string& name) {
  for (const KernelTable* t : {&kNone, &kernels_generic,
#if defined(__aarch64__)
                               &kernels_neon,
#endif
#if defined(OLTR_NEON_BF16)
                               &kernels_neon_bf16,
#endif
                               &kernels()})
    if (name == t->isa) return t;
  return nullptr;
}

std::unique_ptr<Op> op_of(const std::string& name, Sizes size, std::mt19937& random) {
  if (name == "meta_embedding") return std::make_unique<MetaEmbedding>(size, random);
  if (name == "nearest_centroid") return std::make_unique<NearestCentroid>(size, random);
  if (name == "cosine_cross_entropy") return std::make_unique<CosineCrossEntropy>(size, random);
  return nullptr;
}

int run(char** argv) {
  std::mt19937 random(1);
  const KernelTable* table = table_of(argv[2]);
  const std::string type = argv[3];
  const Sizes size{std::stol(argv[4]), std::stol(argv[5]), std::stol(argv[6])};
  const auto op = op_of(argv[1], size, random);
  if (op == nullptr || table == nullptr) {
    std::fprintf(stderr, "run_op: no op %s or no table %s\n", argv[1], argv[2]);
    return 2;
  }
  const Dtype dtype = type == "bfloat16" ? Dtype::kBFloat16 : Dtype::kFloat32;
  if (std::string(argv[7]) == "forward") {
    op->forward(*table, dtype);
    return 0;
  }
  Arrays grads = op->forward(kNone, dtype);  // their sizes
  for (Array& g : grads) g = random_array(static_cast<int64_t>(g.size()), random);
  grads.resize(op->with_gradient);
  op->backward(*table, dtype, grads);  // after a forward pass
  return 0;
}

}  // namespace
}  // namespace oltr::testing

int main(int argc, char** argv) {
  if (argc == 8) return oltr::testing::run(argv);
  std::fprintf(stderr, "usage: run_op OP TABLE DTYPE B C D forward|full\n");
  return 2;
}
