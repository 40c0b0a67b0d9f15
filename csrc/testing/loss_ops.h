// The classifier, the losses and the class means: naive loops and kernel calls, as in ops.h.
#pragma once

#include "testing/ops.h"

namespace oltr::testing {

class CosineLogits : public Op {
 public:
  CosineLogits(Sizes s, std::mt19937& r) {
    size = s;
    inputs = {random_array(B() * D(), r), random_array(C() * D(), r)};
  }
  static Array logits(const double* v, const Array& weight, int64_t C, int64_t D) {
    const double norm = std::sqrt(dot(v, v, D));
    Array z(C, 0.0);
    for (int64_t c = 0; c < C; ++c) {
      const double* w = &weight[c * D];
      const double length = std::sqrt(dot(w, w, D));
      if (length > 0) z[c] = kScale / (1 + norm) * dot(v, w, D) / length;
    }
    return z;
  }
  Arrays naive(const Arrays& in) const override {
    Array all;
    for (int64_t b = 0; b < B(); ++b) {
      const Array z = logits(&in[0][b * D()], in[1], C(), D());
      all.insert(all.end(), z.begin(), z.end());
    }
    return {all};
  }
  static constexpr double kScale = 16;

 protected:
  Arrays forward(const KernelTable& table, Storage& s) const override {
    CosineLogitsForward p{
        size, s.dtype(), kScale, s.in(inputs[0]), s.in(inputs[1]), s.out(B() * C())};
    p.precision = precision;
    table.cosine_logits_forward(p, parallel);
    return {read(p.logits, B() * C())};
  }
  Arrays backward(const KernelTable& table, Storage& s, const Arrays&,
                  const Arrays& grads) const override {
    CosineLogitsBackward p{size,
                           s.dtype(),
                           kScale,
                           s.in(grads[0]),
                           s.in(inputs[0]),
                           s.in(inputs[1]),
                           s.out(B() * D()),
                           s.out(C() * D())};
    p.precision = precision;
    table.cosine_logits_backward(p, parallel);
    return {read(p.grad_v, B() * D()), read(p.grad_weight, C() * D())};
  }
};

// With prior, smoothing, an impossible class and ignored rows.
class CosineCrossEntropy : public Op {
 public:
  CosineCrossEntropy(Sizes s, std::mt19937& r) {
    size = s;
    inputs = {random_array(B() * D(), r), random_array(C() * D(), r)};
    log_prior = random_array(C(), r);
    if (C() > 2) log_prior[C() / 2] = -std::numeric_limits<double>::infinity();
    target = random_labels(B(), C(), r);
    for (int64_t& t : target)
      if (C() > 2 && t == C() / 2) t = 0;
    for (int64_t b = 2; b < B(); b += 5) target[b] = kIgnore;
  }
  Arrays naive(const Arrays& in) const override {
    Array loss(B()), lse(B()), counted(1);
    for (int64_t b = 0; b < B(); ++b) {
      Array z = CosineLogits::logits(&in[0][b * D()], in[1], C(), D());
      double sum = 0, possible = others == kNoShard ? 0 : static_cast<double>(others);
      for (int64_t c = 0; c < C(); ++c) {
        z[c] += log_prior[c];
        if (!std::isfinite(log_prior[c])) continue;
        sum += z[c];
        possible += 1;
      }
      lse[b] = log_sum_exp(z);
      if (target[b] == kIgnore) continue;
      ++counted[0];
      const double own = target[b] < C() ? z[target[b]] : 0;
      loss[b] = lse[b] - (1 - kSmoothing) * own - kSmoothing * sum / possible;
    }
    return {loss, lse, counted};
  }

 protected:
  static constexpr double kScale = CosineLogits::kScale, kSmoothing = 0.125;
  static constexpr int64_t kIgnore = -100;
  Array log_prior;
  Labels target;
  int64_t others = kNoShard;

  Arrays forward(const KernelTable& table, Storage& s) const override {
    CosineCrossEntropyForward p{size,         s.dtype(),       kScale,          kSmoothing,
                                kIgnore,      s.in(inputs[0]), s.in(inputs[1]), s.in_acc(log_prior),
                                s.in(target), s.out_acc(B()),  s.out_acc(B()),  s.out_acc(1)};
    p.precision = precision;
    p.others = others;
    table.cosine_cross_entropy_forward(p, parallel);
    Array loss = read(p.loss, B());
    const Array lse = read(p.lse, B());
    // of a shard it lacks this, which is of all shards
    for (int64_t b = 0; others != kNoShard && b < B(); ++b)
      if (target[b] != kIgnore) loss[b] += lse[b];
    return {loss, lse, read(p.counted, 1)};
  }
  Arrays backward(const KernelTable& table, Storage& s, const Arrays& out,
                  const Arrays& grads) const override {
    CosineCrossEntropyBackward p{size,
                                 s.dtype(),
                                 kScale,
                                 kSmoothing,
                                 kIgnore,
                                 s.in_acc(grads[0]),
                                 s.in(inputs[0]),
                                 s.in(inputs[1]),
                                 s.in_acc(log_prior),
                                 s.in_acc(out[1]),
                                 s.in(target),
                                 s.out(B() * D()),
                                 s.out(C() * D())};
    p.precision = precision;
    p.others = others;
    table.cosine_cross_entropy_backward(p, parallel);
    return {read(p.grad_v, B() * D()), read(p.grad_weight, C() * D())};
  }
};

// A shard of a bank of three possible classes more, some of which are targets.
class CosineCrossEntropyShard : public CosineCrossEntropy {
 public:
  CosineCrossEntropyShard(Sizes s, std::mt19937& r) : CosineCrossEntropy(s, r) {
    others = 3;
    for (int64_t b = 0; b < B(); b += 3)
      if (target[b] != kIgnore) target[b] = C();
  }
};

class DiscCentroidsLoss : public Op {
 public:
  DiscCentroidsLoss(Sizes s, std::mt19937& r) {
    size = s;
    inputs = {random_array(B() * D(), r), random_array(C() * D(), r)};
    target = random_labels(B(), C(), r);
  }
  Arrays naive(const Arrays& in) const override {
    Array sums(1 + 2 * D());
    if (B() == 0) return {{0.0}, sums};
    double own = 0, others = 0;
    for (int64_t b = 0; b < B(); ++b)
      for (int64_t c = 0; c < C(); ++c)
        (c == target[b] ? own : others) += distance2(&in[0][b * D()], &in[1][c * D()], D());
    const double gap = margin() - others / (B() * C());
    sums[0] = gap >= 0 ? 1.0 : 0.0;
    for (int64_t d = 0; d < D(); ++d) {
      for (int64_t b = 0; b < B(); ++b) sums[1 + d] += in[0][b * D() + d] - in[1][d];
      for (int64_t c = 0; c < C(); ++c) sums[1 + D() + d] += in[1][c * D() + d] - in[1][d];
    }
    return {{own / (2 * B()) + kRepel * std::clamp(gap, 0.0, 1e6)}, sums};
  }

 protected:
  static constexpr double kRepel = 0.25;
  double margin() const { return 3.0 * D(); }  // wide enough to let the gradient through
  Labels target;

  Arrays forward(const KernelTable& table, Storage& s) const override {
    Array sums(1 + 2 * D());
    DiscCentroidsLossForward p{size,         s.dtype(),       margin(),
                               kRepel,       s.in(inputs[0]), s.in(inputs[1]),
                               s.in(target), s.out_acc(1),    sums.data()};
    table.disc_centroids_loss_forward(p, parallel);
    return {read(p.loss, 1), sums};
  }
  Arrays backward(const KernelTable& table, Storage& s, const Arrays& out,
                  const Arrays& grads) const override {
    DiscCentroidsLossBackward p{size,
                                s.dtype(),
                                kRepel,
                                s.in_acc(grads[0]),
                                out[1].data(),
                                false,
                                s.in(inputs[0]),
                                s.in(inputs[1]),
                                s.in(target),
                                s.out(B() * D()),
                                s.out(C() * D())};
    table.disc_centroids_loss_backward(p, parallel);
    return {read(p.grad_x, B() * D()), read(p.grad_centroids, C() * D())};
  }
};

class ClassMeans : public Op {
 public:
  ClassMeans(Sizes s, std::mt19937& r) {
    size = s;
    inputs = {random_array(B() * D(), r)};
    target = random_labels(B(), C(), r);
  }
  Arrays naive(const Arrays& in) const override {
    Array means(C() * D(), 0.0), counts(C(), 0.0);
    for (int64_t b = 0; b < B(); ++b) {
      counts[target[b]] += 1;
      for (int64_t d = 0; d < D(); ++d) means[target[b] * D() + d] += in[0][b * D() + d];
    }
    for (int64_t i = 0; i < C() * D(); ++i) means[i] /= std::max(counts[i / D()], 1.0);
    return {means, counts};
  }

 protected:
  Labels target;

  Arrays forward(const KernelTable& table, Storage& s) const override {
    ClassMeansForward p{size,         s.dtype(),        s.in(inputs[0]),
                        s.in(target), s.out(C() * D()), s.out_index(C())};
    table.class_means_forward(p, parallel);
    return {read(p.means, C() * D()), read(p.counts, C())};
  }
  Arrays backward(const KernelTable& table, Storage& s, const Arrays& out,
                  const Arrays& grads) const override {
    ClassMeansBackward p{size,
                         s.dtype(),
                         s.in(grads[0]),
                         s.in(target),
                         s.in(Labels(out[1].begin(), out[1].end())),
                         s.out(B() * D())};
    table.class_means_backward(p, parallel);
    return {read(p.grad_x, B() * D())};
  }
};

}  // namespace oltr::testing
