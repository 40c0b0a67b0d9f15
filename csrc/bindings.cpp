// `oltr_ext._C`: what needs no tensor. Free of torch, so it imports even where torch is broken.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/plan.h"
#include "cpu/cpu_features.h"
#include "cpu/kernels.h"
#include "cuda/launch.h"
#include "oltr_build_info.h"

namespace py = pybind11;

// Tables that carry their name alone: cpu/dispatch.cpp makes its choice here as it does in the op
// library, and no kernel has to be linked in for it.
namespace oltr {
const KernelTable kernels_generic{"generic"}, kernels_avx2{"avx2"}, kernels_avx512{"avx512"},
    kernels_avx512_bf16{"avx512_bf16"}, kernels_amx{"amx"}, kernels_neon{"neon"},
    kernels_neon_bf16{"neon_bf16"};
}  // namespace oltr

namespace {

// What setup.py decided, key by key, and the C++ standard this file was compiled under.
py::dict build_info() {
  const struct {
    const char* key;
    const char* value;
  } rows[] = {OLTR_BUILD_INFO};
  py::dict info;
  for (const auto& row : rows) info[row.key] = row.value;
  info["cxx_standard"] = std::to_string(__cplusplus);
  return info;
}

py::dict cpu_features() {
  const oltr::CpuFeatures found = oltr::cpu_features();
  py::dict out;
#if defined(__aarch64__)
  out["neon"] = found.neon;
  out["neon_bf16"] = found.neon_bf16;
#else
  out["avx2"] = found.avx2;
  out["fma"] = found.fma;
  out["avx512f"] = found.avx512f;
  out["avx512_bf16"] = found.avx512_bf16;
  out["amx"] = found.amx;
  if (!found.amx) out["amx_refused"] = oltr::tiles_refused();
#endif
  out["isa"] = oltr::selected_isa();
  return out;
}

int64_t accumulator_bytes(const std::string& dtype) {
  if (dtype == "float64") return 8;
  if (dtype == "float32" || dtype == "bfloat16" || dtype == "float16") return 4;
  throw py::value_error("plan: expected dtype float32, float64, bfloat16 or float16, got " + dtype);
}

py::dict plan(int64_t B, int64_t C, int64_t D, const std::string& dtype,
              const std::string& device) {
  if (B < 0 || C < 1 || D < 1) {
    throw py::value_error("plan: expected B >= 0, C >= 1 and D >= 1, got B = " + std::to_string(B) +
                          ", C = " + std::to_string(C) + ", D = " + std::to_string(D));
  }
  py::dict out;
  if (device == "cuda") {
    using namespace oltr::cuda;
    const int64_t acc = accumulator_bytes(dtype);
    const ElementBytes bytes{dtype == "bfloat16" || dtype == "float16" ? 2 : acc, acc};
    out["forward_chunk"] = forward_chunk({B, C, D}, bytes, true, true, kChunkBytes);
    out["backward_chunk"] = backward_chunk({B, C, D}, bytes, kChunkBytes);
    out["threads"] = kThreads;
    const FusedPlan fused =
        bytes.stored == 2 && D % 8 == 0 ? fused_plan({B, C, D}, true, kH100) : FusedPlan{};
    out["fused_width"] = fused.width;
    out["fused_parts"] = fused.parts;
    return out;
  }
  if (device != "cpu") throw py::value_error("plan: expected device cpu or cuda, got " + device);
  const oltr::Plan p = oltr::make_plan(B, C, D, accumulator_bytes(dtype));
  out["row_block"] = p.row_block;
  out["row_group"] = p.row_group;
  out["class_tile"] = p.class_tile;
  out["splits_forward"] = p.splits_forward;
  out["splits_backward"] = p.splits_backward;
  out["scratch_bytes"] = p.scratch_bytes;
  return out;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build info, CPU features and launch plans of oltr_ext.";
  m.def("build_info", &build_info, "What was built, by what and for what: a dict of strings.");
  m.def("cpu_features", &cpu_features,
        "Instruction sets found at run time, and under \"isa\" the one that the kernels use.");
  m.def("plan", &plan, py::arg("B"), py::arg("C"), py::arg("D"), py::arg("dtype") = "float32",
        py::arg("device") = "cpu",
        "How meta_embedding over B rows, C classes and width D is cut, on \"cuda\" as on an H100; "
        "raises ValueError on bad input.");
}
