"""The dynamic meta-embedding and the cosine classifier, as layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oltr_ext import ops
from oltr_ext.nn.checks import check_sizes
from oltr_ext.nn.losses import wide
from oltr_ext.ops import MetaEmbeddingDetails, StreamedBank

PARTS = ("memory", "selector", "reachability")
"""Factors of the meta-embedding that an ablation may leave out."""


class CosineClassifier(nn.Module):
    """Logits by direction: see :func:`oltr_ext.ops.cosine_logits`.

    Args:
        feat_dim: D.
        num_classes: C.
        scale: of the logits.

    Raises:
        ValueError: no class or no feature.
    """

    def __init__(self, feat_dim: int, num_classes: int, *, scale: float = 16.0) -> None:
        super().__init__()
        check_sizes("CosineClassifier", num_classes, feat_dim)
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, feat_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """w ~ U(-1/sqrt(D), 1/sqrt(D)), as in the paper's code."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    @torch.no_grad()
    def start_at(self, directions: Tensor) -> None:
        """Points each class at a row of ``directions`` (C, D), at the length of the random start.

        Only the direction of a weight matters to the logits, but its length sets how far a step
        turns it. A zero row (a class without data) keeps its random start.
        """
        directions = wide(directions)
        largest = directions.abs().amax(dim=1, keepdim=True)
        there = largest > 0
        # squares of small numbers are 0 and those of large ones infinite: by the largest first
        divide = there & ((largest < 1e-12) | (largest > 1e15))
        unit = F.normalize(directions / largest.where(divide, 1), dim=1)
        length = 3**-0.5  # of a row of U(-1/sqrt(D), 1/sqrt(D)), whatever D
        start = (unit * length).to(self.weight)
        self.weight.copy_(torch.where(there.to(self.weight.device), start, self.weight))

    def forward(self, v: Tensor) -> Tensor:
        """Embeddings (B, D) to logits (B, C)."""
        return ops.cosine_logits(v, self.weight, scale=self.scale)

    def loss(self, v: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Fused cross-entropy; options of :func:`oltr_ext.ops.cosine_cross_entropy`."""
        return ops.cosine_cross_entropy(v, self.weight, target, scale=self.scale, **options)

    def extra_repr(self) -> str:
        classes, width = self.weight.shape
        return f"feat_dim={width}, num_classes={classes}, scale={self.scale}"


class OpLinear(nn.Linear):
    """A Linear whose weights an op reads, not its forward.

    Quantisation, which puts another module in the place of every `nn.Linear` by its very type,
    passes it over: a memory keeps its precision where a model's other layers lose theirs.
    """


class MetaEmbedding(nn.Module):
    """v = r (x + e m) over a memory given at each call: see :func:`oltr_ext.ops.meta_embedding`.

    Args:
        feat_dim: D.
        num_classes: C.
        scale: s of the reachability r = s / d.
        eps: floor of the distance.
        memory_grad: whether the memory gets a gradient here (the released code detaches it).
        without: `PARTS` to leave out: the memory feature (m = 0), the selector (e = 1), or the
            reachability (r = 1). Weights of a part left out stay in the state dict, untrained.

    Raises:
        ValueError: an unknown part, no class or no feature.
    """

    def __init__(
        self,
        feat_dim: int,
        num_classes: int,
        *,
        scale: float = 10.0,
        eps: float = 1e-6,
        memory_grad: bool = False,
        without: Iterable[str] = (),
    ) -> None:
        super().__init__()
        check_sizes(type(self).__name__, num_classes, feat_dim)
        self.scale, self.eps, self.memory_grad = scale, eps, memory_grad
        self.without = tuple(without)
        if not set(self.without) <= set(PARTS):
            raise ValueError(
                f"MetaEmbedding: expected without to name some of {', '.join(PARTS)}, got "
                f"{', '.join(self.without)}"
            )
        self.fc_hallucinator = OpLinear(feat_dim, num_classes)
        self.fc_selector = OpLinear(feat_dim, feat_dim)
        # DistributedDataParallel waits for the gradient of whatever could have one
        self.fc_hallucinator.requires_grad_("memory" not in self.without)
        self.fc_selector.requires_grad_("selector" not in self.without)

    def embed(
        self, x: Tensor, memory: Tensor, present: Tensor | None = None
    ) -> MetaEmbeddingDetails:
        """Features (B, D) and centroids (C, D) to the embedding and all it is made of.

        Args:
            present: (K,) int64, classes that have a centroid, where not all do. The result is that
                of a memory of these alone: no other is nearest, and attention recalls no other.
        """
        keys, bias = self.fc_hallucinator.weight, self.fc_hallucinator.bias
        if present is None:
            return self.embed_by(x, memory, keys, bias)
        parts = self.embed_by(x, _only(memory, present), _only(keys, present), bias[present])
        return parts._replace(nearest=present[parts.nearest])

    def embed_by(
        self, x: Tensor, memory: Tensor, keys: Tensor, bias: Tensor
    ) -> MetaEmbeddingDetails:
        """As `embed`, by keys (K, D) and their bias (K,) other than its own."""
        if self.without:
            return self._embed_without(x, memory, keys, bias)
        return ops.meta_embedding(
            x,
            memory,
            keys,
            bias,
            self.fc_selector.weight,
            self.fc_selector.bias,
            scale=self.scale,
            eps=self.eps,
            memory_grad=self.memory_grad,
            return_details=True,
        )

    def _embed_without(
        self, x: Tensor, memory: Tensor, keys: Tensor, bias: Tensor
    ) -> MetaEmbeddingDetails:
        if not self.memory_grad:
            memory = memory.detach()
        # in float32, as the fused op has it, which float16 cannot hold from 65,520 on
        distance, nearest = ops.nearest_centroid(wide(x), wide(memory))
        distance = distance.clamp_min(self.eps)
        recalled, gate = torch.zeros_like(x), torch.ones_like(x)
        if "memory" not in self.without:
            recalled = ops.memory_attention(x, keys, bias, memory)
        if "selector" not in self.without:
            gate = torch.tanh(self.fc_selector(x))
        embedding = x + gate * recalled
        if "reachability" not in self.without:
            embedding = (self.scale * (embedding / distance[:, None])).to(x.dtype)
        return MetaEmbeddingDetails(embedding, recalled, gate, distance, nearest)

    def forward(self, x: Tensor, memory: Tensor) -> Any:
        """Features (B, D) and centroids (C, D) to embeddings (B, D)."""
        return self.embed(x, memory).embedding

    def extra_repr(self) -> str:
        return f"scale={self.scale}, eps={self.eps}, memory_grad={self.memory_grad}"


class MetaEmbeddingClassifier(MetaEmbedding):
    """Drop-in for the released code's classifier: same inputs, outputs and parameter names.

    State dicts of the released code load as they are, also with the ``module.`` prefix that
    DataParallel left on them.

    Args:
        feat_dim: D.
        num_classes: C.
        logit_scale: scale of the cosine classifier.
        options: of :class:`MetaEmbedding`.
    """

    def __init__(
        self, feat_dim: int, num_classes: int, *, logit_scale: float = 16.0, **options: Any
    ) -> None:
        super().__init__(feat_dim, num_classes, **options)
        self.cosnorm_classifier = CosineClassifier(feat_dim, num_classes, scale=logit_scale)
        self.register_load_state_dict_pre_hook(_strip_module_prefix)

    def forward(self, x: Tensor, centroids: Tensor, *args: Any) -> tuple[Tensor, list[Tensor]]:
        """Features (B, D) and centroids (C, D) to (logits (B, C), [direct, infused feature]).

        The infused feature (B, D) is what the gate let through, e * m. Further arguments are
        ignored, as in the released code.
        """
        parts = self.embed(x, centroids)
        logits = self.cosnorm_classifier(parts.embedding)
        return logits, [x, parts.selector * parts.memory_feature]


def _only(bank: Tensor, classes: Tensor) -> Any:
    return bank.only(classes) if isinstance(bank, StreamedBank) else bank[classes]


def _strip_module_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    for name in [n for n in state if n.startswith(f"{prefix}module.")]:
        state[prefix + name.removeprefix(f"{prefix}module.")] = state.pop(name)
