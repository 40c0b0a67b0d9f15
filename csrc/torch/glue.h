// What every op's glue needs: checks that name the op first, then what was expected and what came,
// and the views that kernels take. torch/<op>.h is written with it, once for all devices.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/params.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // before torch 2.13, whose errors lose their message here
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace oltr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Args>
[[noreturn]] inline void fail(const char* op, const Args&... args) {
  std::ostringstream message;
  message << op << ": ";
  (message << ... << args);
  throw std::runtime_error(message.str());
}

inline const char* dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    default:
      return "another dtype";
  }
}

inline Dtype kernel_dtype(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      fail(op, "expected ", name, " to be float32, float64, bfloat16 or float16, got dtype number ",
           static_cast<int>(t.scalar_type()));
  }
}

inline ScalarType accumulator(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? ScalarType::Double : ScalarType::Float;
}

// "highest", "high" or "medium", as torch.get_float32_matmul_precision() has it.
inline Precision kernel_precision(const char* op, const std::string& name) {
  if (name == "highest") return Precision::kHighest;
  if (name == "high") return Precision::kHigh;
  if (name == "medium") return Precision::kMedium;
  fail(op, "expected precision to be highest, high or medium, got ", name);
}

struct Sorted {
  Tensor labels, order;
};

// One op call: checks arguments against the first one and turns them into kernel views. Keeps the
// contiguous copies it makes alive until the kernel is done.
class Call {
 public:
  Call(const char* op, const char* name, const Tensor& lead)
      : op_(op), lead_(lead), dtype_(kernel_dtype(op, name, lead)) {
    if (lead.dim() != 2)
      fail(op, "expected ", name, " of shape (rows, width), got ", lead.dim(), " dimensions");
    at_least_one("feature", lead.size(1));  // plans divide by the width
  }

  Dtype dtype() const { return dtype_; }

  Matrix in(const char* name, const Tensor& t, std::vector<int64_t> shape) {
    check(name, t, lead_.scalar_type(), shape);
    return {keep(t), dtype_};
  }
  // Statistics, held in the accumulator type.
  Matrix in_acc(const char* name, const Tensor& t, std::vector<int64_t> shape) {
    check(name, t, accumulator(dtype_), shape);
    return {keep(t), accumulator(dtype_) == ScalarType::Double ? Dtype::kFloat64 : Dtype::kFloat32};
  }
  Matrix in_optional(const char* name, const OptionalTensor& t, std::vector<int64_t> shape) {
    return t.has_value() ? in(name, *t, std::move(shape)) : Matrix{};
  }
  Matrix in_acc_optional(const char* name, const OptionalTensor& t, std::vector<int64_t> shape) {
    return t.has_value() ? in_acc(name, *t, std::move(shape)) : Matrix{};
  }
  const int64_t* in_index(const char* name, const Tensor& t, std::vector<int64_t> shape) {
    check(name, t, ScalarType::Long, shape);
    return static_cast<const int64_t*>(keep(t));
  }
  const double* in_sums(const char* name, const Tensor& t, std::vector<int64_t> shape) {
    check(name, t, ScalarType::Double, shape);
    return static_cast<const double*>(keep(t));
  }
  // Labels in [0, classes), or ignore_index where the op has one. A GPU's labels are not looked at,
  // for that would wait for it: its kernels make NaN of what a wrong one reaches.
  const int64_t* labels(const char* name, const Tensor& t, int64_t batch, int64_t classes,
                        std::optional<int64_t> ignore_index = std::nullopt) {
    const int64_t* p = in_index(name, t, {batch});
    for (int64_t i = 0; lead_.is_cpu() && i < batch; ++i) {
      if (ignore_index.has_value() && p[i] == *ignore_index) continue;
      if (p[i] < 0 || p[i] >= classes)
        fail(op_, "expected every ", name, " in [0, ", classes, "), got ", p[i], " at row ", i);
    }
    return p;
  }

  // Labels in order, for the ops that group rows by class on a GPU: torch's sort is as fast as any.
  std::optional<Sorted> sort_labels(const Tensor& t) const {
    if (lead_.is_cpu()) return std::nullopt;
    using torch::stable::detail::from;
    std::array<StableIValue, 4> stack{from(t), from(std::optional<bool>(true)), from(int64_t{-1}),
                                      from(false)};
    STABLE_TORCH_ERROR_CODE_CHECK(
        torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
    return Sorted{torch::stable::detail::to<Tensor>(stack[0]),
                  torch::stable::detail::to<Tensor>(stack[1])};
  }

  template <class Device, class Params>
  void run(const Params& p) const {
    Device::run(op_, lead_, p);
  }

  Tensor empty(std::vector<int64_t> shape) const { return empty(shape, lead_.scalar_type()); }
  Tensor empty_acc(std::vector<int64_t> shape) const { return empty(shape, accumulator(dtype_)); }
  Tensor empty_index(std::vector<int64_t> shape) const { return empty(shape, ScalarType::Long); }
  Tensor empty_sums(std::vector<int64_t> shape) const { return empty(shape, ScalarType::Double); }
  MutableMatrix out(const Tensor& t) const {
    return {t.mutable_data_ptr(), kernel_dtype(op_, "output", t)};
  }

  void at_least_one(const char* what, int64_t n) const {
    if (n < 1) fail(op_, "expected at least one ", what, ", got ", n);
  }

 private:
  Tensor empty(const std::vector<int64_t>& shape, ScalarType dtype) const {
    return torch::stable::new_empty(lead_, shape, dtype);
  }
  void check(const char* name, const Tensor& t, ScalarType dtype,
             const std::vector<int64_t>& shape) const {
    if (t.scalar_type() != dtype)
      fail(op_, "expected ", name, " of dtype ", dtype_name(dtype), ", got ",
           dtype_name(t.scalar_type()));
    if (t.device() != lead_.device())
      fail(op_, "expected ", name, " on the device of the first argument");
    bool same = t.dim() == static_cast<int64_t>(shape.size());
    for (size_t i = 0; same && i < shape.size(); ++i)
      same = t.size(static_cast<int64_t>(i)) == shape[i];
    if (same) return;
    std::ostringstream want, got;
    for (const int64_t n : shape) want << (want.tellp() > 0 ? ", " : "") << n;
    for (int64_t i = 0; i < t.dim(); ++i) got << (i > 0 ? ", " : "") << t.size(i);
    fail(op_, "expected ", name, " of shape (", want.str(), "), got (", got.str(), ")");
  }
  const void* keep(const Tensor& t) {
    // A dispatched call a tensor would show in the cost of a small op.
    kept_.push_back(t.is_contiguous() ? t : torch::stable::contiguous(t));
    return kept_.back().const_data_ptr();
  }

  const char* op_;
  Tensor lead_;
  Dtype dtype_;
  std::vector<Tensor> kept_;
};

}  // namespace oltr
