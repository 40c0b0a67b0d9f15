"""The formulas as one would write them on paper, in pure PyTorch.

Three users: the fallback, the tests and the benchmarks. Arguments are those of the native ops, of
which `oltr_ext.ops` checks shapes and dtypes; what only reading the data can tell is checked here,
but where `torch.vmap` maps over it or a graph is traced. Shapes that do not fit are torch's errors.
Half-precision inputs are computed in float32.
"""

from oltr_ext.reference.class_means import class_means
from oltr_ext.reference.cosine_cross_entropy import cosine_cross_entropy
from oltr_ext.reference.cosine_logits import cosine_logits
from oltr_ext.reference.disc_centroids_loss import disc_centroids_loss
from oltr_ext.reference.memory_attention import memory_attention
from oltr_ext.reference.meta_embedding import meta_embedding
from oltr_ext.reference.nearest_centroid import nearest_centroid

__all__ = [
    "class_means",
    "cosine_cross_entropy",
    "cosine_logits",
    "disc_centroids_loss",
    "memory_attention",
    "meta_embedding",
    "nearest_centroid",
]
