// Each op twice: the formula as naive loops in double, and the call of its kernels. Here the ops
// over the memory; the others are in loss_ops.h.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <utility>

#include "cpu/kernels.h"
#include "testing/guarded.h"

namespace oltr::testing {

using Arrays = std::vector<Array>;

class Op {
 public:
  Sizes size;
  Arrays inputs;             // what gradients flow to
  size_t with_gradient = 1;  // outputs that gradients come from, the first ones
  Precision precision = Precision::kHighest;

  virtual ~Op() = default;
  virtual Arrays naive(const Arrays& in) const = 0;
  Arrays forward(const KernelTable& table, Dtype dtype) const {
    Storage s(dtype);
    Arrays out = forward(table, s);
    EXPECT_TRUE(s.intact()) << "forward wrote out of bounds";
    return out;
  }
  // Gradients of sum(grads * outputs) with respect to the inputs.
  Arrays backward(const KernelTable& table, Dtype dtype, const Arrays& grads) const {
    const Arrays out = forward(table, dtype);
    Storage s(dtype);
    Arrays in = backward(table, s, out, grads);
    EXPECT_TRUE(s.intact()) << "backward wrote out of bounds";
    return in;
  }

 protected:
  virtual Arrays forward(const KernelTable& table, Storage& s) const = 0;
  virtual Arrays backward(const KernelTable& table, Storage& s, const Arrays& out,
                          const Arrays& grads) const = 0;
  int64_t B() const { return size.batch; }
  int64_t C() const { return size.classes; }
  int64_t D() const { return size.width; }
};

// Eight significant bits: exact in every dtype, so that all of them answer the same question.
inline Array random_array(int64_t n, std::mt19937& random) {
  std::normal_distribution<double> normal;
  Array a(n);
  for (double& v : a) v = std::clamp(std::round(normal(random) * 64), -255.0, 255.0) / 64;
  return a;
}
// Rows whose products with others of this width stay about as large as one element: their softmax
// does not sit on one class. Scaled by a power of two, so still exact.
inline Array random_keys(int64_t rows, int64_t width, std::mt19937& random) {
  Array a = random_array(rows * width, random);
  const double scale = std::exp2(-std::floor(std::log2(static_cast<double>(width)) / 2));
  for (double& v : a) v *= scale;
  return a;
}
inline Labels random_labels(int64_t n, int64_t classes, std::mt19937& random) {
  Labels a(n);
  for (int64_t& v : a) v = static_cast<int64_t>(random() % classes);
  return a;
}

inline double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}
inline double distance2(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}
inline double log_sum_exp(const Array& z) {
  const double max = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (const double v : z) sum += std::exp(v - max);
  return max + std::log(sum);
}
// (distance, index) of the nearest of n rows.
inline std::pair<double, int64_t> nearest(const double* x, const Array& rows, int64_t n,
                                          int64_t width) {
  int64_t best = 0;
  for (int64_t c = 1; c < n; ++c)
    if (distance2(x, &rows[c * width], width) < distance2(x, &rows[best * width], width)) best = c;
  return {std::sqrt(distance2(x, &rows[best * width], width)), best};
}

class MemoryAttention : public Op {
 public:
  MemoryAttention(Sizes s, std::mt19937& r) {
    size = s;
    inputs = {random_array(B() * D(), r), random_keys(C(), D(), r), random_array(C(), r),
              random_array(C() * D(), r)};
  }
  static void attend(const double* x, const Array& keys, const Array& bias, const Array& memory,
                     int64_t C, int64_t D, double* out, double* lse) {
    Array z(C);
    for (int64_t c = 0; c < C; ++c) z[c] = dot(x, &keys[c * D], D) + bias[c];
    *lse = log_sum_exp(z);
    std::fill(out, out + D, 0.0);
    for (int64_t c = 0; c < C; ++c) {
      const double weight = std::exp(z[c] - *lse);
      for (int64_t d = 0; d < D; ++d) out[d] += weight * memory[c * D + d];
    }
  }
  Arrays naive(const Arrays& in) const override {
    Array out(B() * D()), lse(B());
    for (int64_t b = 0; b < B(); ++b)
      attend(&in[0][b * D()], in[1], in[2], in[3], C(), D(), &out[b * D()], &lse[b]);
    return {out, lse};
  }

 protected:
  Arrays forward(const KernelTable& table, Storage& s) const override {
    MemoryAttentionForward p{size,
                             s.dtype(),
                             s.in(inputs[0]),
                             s.in(inputs[1]),
                             s.in(inputs[2]),
                             s.in(inputs[3]),
                             s.out(B() * D()),
                             s.out_acc(B())};
    p.precision = precision;
    table.memory_attention_forward(p, parallel);
    return {read(p.out, B() * D()), read(p.lse, B())};
  }
  Arrays backward(const KernelTable& table, Storage& s, const Arrays& out,
                  const Arrays& grads) const override {
    MemoryAttentionBackward p;
    p.size = size;
    p.dtype = s.dtype();
    p.grad_out = s.in(grads[0]);
    p.x = s.in(inputs[0]);
    p.keys = s.in(inputs[1]);
    p.key_bias = s.in(inputs[2]);
    p.memory = s.in(inputs[3]);
    p.out = s.in(out[0]);
    p.lse = s.in_acc(out[1]);
    p.grad_x = s.out(B() * D());
    p.grad_keys = s.out(C() * D());
    p.grad_key_bias = s.out(C());
    p.grad_memory = s.out(C() * D());
    p.precision = precision;
    table.memory_attention_backward(p, parallel);
    return {read(p.grad_x, B() * D()), read(p.grad_keys, C() * D()), read(p.grad_key_bias, C()),
            read(p.grad_memory, C() * D())};
  }
};

class NearestCentroid : public Op {
 public:
  NearestCentroid(Sizes s, std::mt19937& r) {
    size = s;
    inputs = {random_array(B() * D(), r), random_array(C() * D(), r)};
  }
  Arrays naive(const Arrays& in) const override {
    Array distance(B()), index(B());
    for (int64_t b = 0; b < B(); ++b) {
      const auto [d, k] = nearest(&in[0][b * D()], in[1], C(), D());
      distance[b] = d;
      index[b] = static_cast<double>(k);
    }
    return {distance, index};
  }

 protected:
  Arrays forward(const KernelTable& table, Storage& s) const override {
    NearestCentroidForward p{size,       s.dtype(),       s.in(inputs[0]), s.in(inputs[1]),
                             s.out(B()), s.out_index(B())};
    p.precision = precision;
    table.nearest_centroid_forward(p, parallel);
    return {read(p.distance, B()), read(p.index, B())};
  }
  Arrays backward(const KernelTable& table, Storage& s, const Arrays& out,
                  const Arrays& grads) const override {
    const Labels index(out[1].begin(), out[1].end());
    NearestCentroidBackward p{
        size,        s.dtype(),        s.in(grads[0]),  s.in(inputs[0]), s.in(inputs[1]),
        s.in(index), s.out(B() * D()), s.out(C() * D())};
    table.nearest_centroid_backward(p, parallel);
    return {read(p.grad_x, B() * D()), read(p.grad_memory, C() * D())};
  }
};

class MetaEmbedding : public Op {
 public:
  double eps = 1e-6;
  MetaEmbedding(Sizes s, std::mt19937& r) {
    size = s;
    with_gradient = 4;
    inputs = {random_array(B() * D(), r), random_array(C() * D(), r), random_keys(C(), D(), r),
              random_array(C(), r),       random_keys(D(), D(), r),   random_array(D(), r)};
  }
  Arrays naive(const Arrays& in) const override {
    Array embedding(B() * D()), recalled(B() * D()), selector(B() * D()), distance(B()), lse(B()),
        index(B());
    for (int64_t b = 0; b < B(); ++b) {
      const double* x = &in[0][b * D()];
      MemoryAttention::attend(x, in[2], in[3], in[1], C(), D(), &recalled[b * D()], &lse[b]);
      const auto [d, k] = nearest(x, in[1], C(), D());
      distance[b] = std::max(d, eps);
      index[b] = static_cast<double>(k);
      for (int64_t i = 0; i < D(); ++i) {
        const double e = std::tanh(dot(x, &in[4][i * D()], D()) + in[5][i]);
        selector[b * D() + i] = e;
        embedding[b * D() + i] = kScale / distance[b] * (x[i] + e * recalled[b * D() + i]);
      }
    }
    return {embedding, recalled, selector, distance, lse, index};
  }

 protected:
  static constexpr double kScale = 10;
  Arrays forward(const KernelTable& table, Storage& s) const override {
    MetaEmbeddingForward p;
    p.size = size;
    p.dtype = s.dtype();
    p.scale = kScale;
    p.eps = eps;
    p.x = s.in(inputs[0]);
    p.memory = s.in(inputs[1]);
    p.keys = s.in(inputs[2]);
    p.key_bias = s.in(inputs[3]);
    p.selector_weight = s.in(inputs[4]);
    p.selector_bias = s.in(inputs[5]);
    p.embedding = s.out(B() * D());
    p.memory_feature = s.out(B() * D());
    p.selector = s.out(B() * D());
    p.distance = s.out_acc(B());
    p.lse = s.out_acc(B());
    p.nearest = s.out_index(B());
    p.precision = precision;
    table.meta_embedding_forward(p, parallel);
    return {read(p.embedding, B() * D()),
            read(p.memory_feature, B() * D()),
            read(p.selector, B() * D()),
            read(p.distance, B()),
            read(p.lse, B()),
            read(p.nearest, B())};
  }
  Arrays backward(const KernelTable& table, Storage& s, const Arrays& out,
                  const Arrays& grads) const override {
    MetaEmbeddingBackward p;
    p.size = size;
    p.dtype = s.dtype();
    p.scale = kScale;
    p.eps = eps;
    p.grad_embedding = s.in(grads[0]);
    p.grad_memory_feature = s.in(grads[1]);
    p.grad_selector = s.in(grads[2]);
    p.grad_distance = s.in_acc(grads[3]);
    p.x = s.in(inputs[0]);
    p.memory = s.in(inputs[1]);
    p.keys = s.in(inputs[2]);
    p.key_bias = s.in(inputs[3]);
    p.selector_weight = s.in(inputs[4]);
    p.memory_feature = s.in(out[1]);
    p.selector = s.in(out[2]);
    p.distance = s.in_acc(out[3]);
    p.lse = s.in_acc(out[4]);
    p.nearest = s.in(Labels(out[5].begin(), out[5].end()));
    p.grad_x = s.out(B() * D());
    p.grad_memory = s.out(C() * D());
    p.grad_keys = s.out(C() * D());
    p.grad_key_bias = s.out(C());
    p.grad_selector_weight = s.out(D() * D());
    p.grad_selector_bias = s.out(D());
    p.precision = precision;
    table.meta_embedding_backward(p, parallel);
    return {read(p.grad_x, B() * D()),
            read(p.grad_memory, C() * D()),
            read(p.grad_keys, C() * D()),
            read(p.grad_key_bias, C()),
            read(p.grad_selector_weight, D() * D()),
            read(p.grad_selector_bias, D())};
  }
};

}  // namespace oltr::testing
