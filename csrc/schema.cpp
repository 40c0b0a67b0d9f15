// Every op's schema: the table of contents. Kernels are registered in csrc/torch/<op>_<device>.cpp;
// autograd, fake and autocast rules in oltr_ext/ops/<op>.py. "acc" is float64 for float64 inputs
// and float32 otherwise. "precision" is what
// torch.get_float32_matmul_precision() says. No argument has a default: the public functions hold
// them, and the dispatcher drops arguments equal to theirs, which autograd formulas would have to
// guess back.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(oltr_ext, m) {
  m.def(
      "memory_attention(Tensor x, Tensor keys, Tensor key_bias, Tensor memory, "
      "bool memory_grad, str precision) -> (Tensor out, Tensor lse)");
  m.def(
      "memory_attention_backward(Tensor grad_out, Tensor x, Tensor keys, Tensor key_bias, "
      "Tensor memory, Tensor out, Tensor lse, bool memory_grad, str precision) "
      "-> (Tensor grad_x, Tensor grad_keys, Tensor grad_key_bias, Tensor grad_memory)");

  m.def(
      "nearest_centroid(Tensor x, Tensor memory, str precision) -> (Tensor distance, Tensor index)");
  m.def(
      "nearest_centroid_backward(Tensor grad_distance, Tensor x, Tensor memory, Tensor index, "
      "bool memory_grad) -> (Tensor grad_x, Tensor grad_memory)");

  m.def(
      "meta_embedding(Tensor x, Tensor memory, Tensor keys, Tensor key_bias, "
      "Tensor selector_weight, Tensor selector_bias, float scale, float eps, "
      "bool memory_grad, str precision) -> (Tensor embedding, Tensor memory_feature, Tensor selector, "
      "Tensor distance, Tensor nearest, Tensor lse)");
  m.def(
      "meta_embedding_backward(Tensor grad_embedding, Tensor? grad_memory_feature, "
      "Tensor? grad_selector, Tensor? grad_distance, Tensor x, Tensor memory, Tensor keys, "
      "Tensor key_bias, Tensor selector_weight, Tensor memory_feature, Tensor selector, "
      "Tensor distance, Tensor nearest, Tensor lse, float scale, float eps, bool memory_grad, str precision) "
      "-> (Tensor grad_x, Tensor grad_memory, Tensor grad_keys, Tensor grad_key_bias, "
      "Tensor grad_selector_weight, Tensor grad_selector_bias)");

  m.def("cosine_logits(Tensor v, Tensor weight, float scale, str precision) -> Tensor");
  m.def(
      "cosine_logits_backward(Tensor grad_logits, Tensor v, Tensor weight, float scale, str precision) "
      "-> (Tensor grad_v, Tensor grad_weight)");

  m.def(
      "cosine_cross_entropy(Tensor v, Tensor weight, Tensor target, Tensor? log_prior, "
      "float scale, float label_smoothing, int ignore_index, int others, str precision) "
      "-> (Tensor loss, Tensor lse, Tensor counted)");
  m.def(
      "cosine_cross_entropy_backward(Tensor grad_loss, Tensor v, Tensor weight, Tensor target, "
      "Tensor? log_prior, Tensor lse, float scale, float label_smoothing, int ignore_index, int others, "
      "str precision) "
      "-> (Tensor grad_v, Tensor grad_weight)");

  m.def(
      "disc_centroids_loss(Tensor x, Tensor target, Tensor centroids, float margin, "
      "float repel_weight, bool official) -> (Tensor loss, Tensor sums)");
  m.def(
      "disc_centroids_loss_backward(Tensor grad_loss, Tensor x, Tensor target, Tensor centroids, "
      "Tensor sums, float repel_weight, bool official) -> (Tensor grad_x, Tensor grad_centroids)");

  m.def("class_means(Tensor x, Tensor target, int num_classes) -> (Tensor means, Tensor counts)");
  m.def("class_means_backward(Tensor grad_means, Tensor target, Tensor counts) -> Tensor grad_x");
}
