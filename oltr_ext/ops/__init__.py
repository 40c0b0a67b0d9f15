"""The ops: native kernels with a pure-PyTorch reference behind the same names.

Each module holds one op: its `torch.autograd.Function`, its fake and autocast rules, and the public
function. `oltr_ext.ops.use_backend` and the environment variable `OLTR_EXT_BACKEND` choose between
the native kernels and the reference.
"""

from oltr_ext.ops._backend import backend, use_backend
from oltr_ext.ops.bank import StreamedBank
from oltr_ext.ops.class_means import class_means
from oltr_ext.ops.cosine_cross_entropy import cosine_cross_entropy
from oltr_ext.ops.cosine_logits import cosine_logits
from oltr_ext.ops.disc_centroids_loss import disc_centroids_loss
from oltr_ext.ops.memory_attention import memory_attention
from oltr_ext.ops.meta_embedding import MetaEmbeddingDetails, meta_embedding
from oltr_ext.ops.nearest_centroid import nearest_centroid
from oltr_ext.ops.shard import Shard

__all__ = [
    "MetaEmbeddingDetails",
    "Shard",
    "StreamedBank",
    "backend",
    "class_means",
    "cosine_cross_entropy",
    "cosine_logits",
    "disc_centroids_loss",
    "memory_attention",
    "meta_embedding",
    "nearest_centroid",
    "use_backend",
]
