"""The dynamic meta-embedding and the cosine classifier, as layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oltr_ext import ops
from oltr_ext.nn.checks import check_own, check_sizes
from oltr_ext.nn.layout import ClassRows, kaiming, uniform
from oltr_ext.ops import MetaEmbeddingDetails, Shard
from oltr_ext.ops._register import held
from oltr_ext.ops.bank import rows_of
from oltr_ext.reference._common import wide

PARTS = ("memory", "selector", "reachability")
"""Factors of the meta-embedding that an ablation may leave out."""


class CosineClassifier(ClassRows):
    """Logits by direction: see :func:`oltr_ext.ops.cosine_logits`.

    Args:
        feat_dim: D.
        num_classes: C.
        scale: of the logits.
        device: of the weights.

    Raises:
        ValueError: no class or no feature.
    """

    CLASS_TENSORS: ClassVar = {"weight": uniform}

    def __init__(
        self,
        feat_dim: int,
        num_classes: int,
        *,
        scale: float = 16.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_sizes("CosineClassifier", num_classes, feat_dim)
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(num_classes, feat_dim, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """w ~ U(-1/sqrt(D), 1/sqrt(D)), as in the paper's code."""
        uniform(self.weight, self.weight.shape[1])

    @torch.no_grad()
    def start_at(self, directions: Tensor) -> None:
        """Points each class at a row of ``directions`` (C, D), at the length of the random start.

        Only the direction of a weight matters to the logits, but its length sets how far a step
        turns it. A zero row (a class without data) keeps its random start.

        Raises:
            ValueError: directions of another shape, or a layer that is parametrized, pruned or
                streamed.
        """
        check_own("CosineClassifier.start_at", self, "weight")
        if directions.shape != self.weight.shape:
            raise ValueError(
                f"CosineClassifier.start_at: expected directions of shape "
                f"{tuple(self.weight.shape)}, got {tuple(directions.shape)}"
            )
        directions = wide(self.layout.cut(directions))
        largest = directions.abs().amax(dim=1, keepdim=True)
        there = largest > 0
        # squares of small numbers are 0 and those of large ones infinite: by the largest first
        divide = there & ((largest < 1e-12) | (largest > 1e15))
        unit = F.normalize(directions / largest.where(divide, 1), dim=1)
        length = 3**-0.5  # of a row of U(-1/sqrt(D), 1/sqrt(D)), whatever D
        weight = self.layout.raw(self.weight)
        start = (unit * length).to(weight)
        weight.copy_(torch.where(there.to(weight.device), start, weight))

    def forward(self, v: Tensor) -> Tensor:
        """Embeddings (B, D) to logits (B, C)."""
        (logits,) = self.layout.each(lambda rows: (self.layout.whole(self.columns(rows)),), v)
        return logits

    def columns(self, v: Tensor) -> Tensor:
        """Logits of the classes that this process has."""
        weight, shard = self.layout.own(self.weight), self.layout.shard
        return ops.cosine_logits(v, weight, scale=self.scale, shard=shard)

    def loss(self, v: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Fused cross-entropy of embeddings (B, D) and labels (B,) int64; options, result and
        errors are those of :func:`oltr_ext.ops.cosine_cross_entropy`. Where processes share the
        classes, it is that of the rows of all of them."""
        return self.loss_of_all(*self.layout.rows(v, target), **options)

    def loss_of_all(self, v: Tensor, target: Tensor, **options: Any) -> Tensor:
        """As `loss`, of rows that all processes which share the classes have."""
        weight, shard = self.layout.own(self.weight), self.layout.shard
        return ops.cosine_cross_entropy(v, weight, target, scale=self.scale, shard=shard, **options)

    def extra_repr(self) -> str:
        classes, width = self.weight.shape
        return f"feat_dim={width}, num_classes={classes}, scale={self.scale}"


class OpLinear(nn.Linear):
    """A Linear whose weights an op reads, not its forward.

    Quantisation, which puts another module in the place of every `nn.Linear` by its very type,
    passes it over: a memory keeps its precision where a model's other layers lose theirs.
    """


class MetaEmbedding(ClassRows):
    """v = r (x + e m) over a memory given at each call: see :func:`oltr_ext.ops.meta_embedding`.

    Args:
        feat_dim: D.
        num_classes: C.
        scale: s of the reachability r = s / d.
        eps: floor of the distance.
        memory_grad: whether the memory gets a gradient here (the released code detaches it).
        without: `PARTS` to leave out: the memory feature (m = 0), the selector (e = 1), or the
            reachability (r = 1). Weights of a part left out stay in the state dict, untrained.
        device: of the weights.

    Raises:
        ValueError: an unknown part, no class or no feature.
    """

    CLASS_TENSORS: ClassVar = {"fc_hallucinator.weight": kaiming, "fc_hallucinator.bias": uniform}

    def __init__(
        self,
        feat_dim: int,
        num_classes: int,
        *,
        scale: float = 10.0,
        eps: float = 1e-6,
        memory_grad: bool = False,
        without: Iterable[str] = (),
        device: torch.device | str | None = None,
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
        self.fc_hallucinator = OpLinear(feat_dim, num_classes, device=device)
        self.fc_selector = OpLinear(feat_dim, feat_dim, device=device)
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
        parts: MetaEmbeddingDetails = self.layout.each(
            lambda rows: self._embed_together(rows, memory, present), x
        )
        return parts

    def _embed_together(
        self, x: Tensor, memory: Tensor, present: Tensor | None
    ) -> MetaEmbeddingDetails:
        """As `embed`, of rows that all processes which share the classes have."""
        keys, bias = self.fc_hallucinator.weight, self.fc_hallucinator.bias
        if present is None:
            bank = (self.layout.own(part) for part in (memory, keys, bias))
            return self.embed_by(x, *bank, shard=self.layout.shard)
        parts = self.embed_by(x, *(rows_of(part, present) for part in (memory, keys, bias)))
        return parts._replace(nearest=present[parts.nearest])

    def embed_by(
        self, x: Tensor, memory: Tensor, keys: Tensor, bias: Tensor, *, shard: Shard | None = None
    ) -> MetaEmbeddingDetails:
        """As `embed`, by keys (K, D) and their bias (K,) other than its own, in their dtype."""
        if self.without:
            return self._embed_without(x, memory, keys, bias, shard)
        weight, own_bias = self._selector(keys.dtype)
        return ops.meta_embedding(
            x,
            memory,
            keys,
            bias,
            weight,
            own_bias,
            scale=self.scale,
            eps=self.eps,
            memory_grad=self.memory_grad,
            return_details=True,
            shard=shard,
        )

    def _selector(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        layer = self.fc_selector
        weight, bias = self.layout.alike(layer.weight), self.layout.alike(layer.bias)
        return weight.to(dtype), bias.to(dtype)

    def _embed_without(
        self, x: Tensor, memory: Tensor, keys: Tensor, bias: Tensor, shard: Shard | None
    ) -> MetaEmbeddingDetails:
        if not self.memory_grad:
            memory = memory.detach()
        # in float32, as the fused op has it, which float16 cannot hold from 65,520 on
        distance, nearest = ops.nearest_centroid(wide(x), wide(memory), shard=shard)
        distance = distance.clamp_min(self.eps)
        recalled, gate = torch.zeros_like(x), torch.ones_like(x)
        if "memory" not in self.without:
            recalled = ops.memory_attention(x, keys, bias, memory, shard=shard)
        if "selector" not in self.without:
            gate = torch.tanh(F.linear(x, *self._selector(keys.dtype)))
        embedding = x + gate * recalled
        if "reachability" not in self.without:
            embedding = held(self.scale * (embedding / distance[:, None]), x.dtype)
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
        self.cosnorm_classifier = CosineClassifier(
            feat_dim, num_classes, scale=logit_scale, device=options.get("device")
        )
        self.register_load_state_dict_pre_hook(_strip_module_prefix)

    def forward(self, x: Tensor, centroids: Tensor, *args: Any) -> tuple[Tensor, list[Tensor]]:
        """Features (B, D) and centroids (C, D) to (logits (B, C), [direct, infused feature]).

        The infused feature (B, D) is what the gate let through, e * m. Further arguments are
        ignored, as in the released code.
        """
        parts = self.embed(x, centroids)
        logits = self.cosnorm_classifier(parts.embedding)
        return logits, [x, parts.selector * parts.memory_feature]


def _strip_module_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *args: Any) -> None:
    for name in [n for n in state if n.startswith(f"{prefix}module.")]:
        state[prefix + name.removeprefix(f"{prefix}module.")] = state.pop(name)
