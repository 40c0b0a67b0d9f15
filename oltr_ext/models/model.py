"""Backbone -> (attention) -> global pool -> optional relu(Linear) -> head, as one module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from oltr_ext.models.tuning import batchnorms
from oltr_ext.models.weights import Base
from oltr_ext.nn import Head

__all__ = ["OLTRModel", "feature_layer"]


def feature_layer(in_dim: int, out_dim: int, *, start: str = "default") -> nn.Linear:
    """The Linear before the head, which `OLTRModel` follows by a ReLU.

    ``start="identity"`` begins as the identity (a rectangular one when the widths differ):
    pooled ReLU features are non-negative, so relu(Linear(x)) = x exactly, and a memory or
    classifier fitted on the features before it stays right on the features after it.

    Raises:
        ValueError: `start` is neither ``default`` nor ``identity``.
    """
    if start not in ("default", "identity"):
        raise ValueError(f"feature_layer: start must be default or identity, got {start!r}")
    layer = nn.Linear(in_dim, out_dim)
    if start == "identity":
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


class OLTRModel(nn.Module):
    """Images (B, C, H, W) -> logits (B, classes).

    Args:
        backbone: module with ``feature_dim``, giving maps (B, feature_dim, h, w).
        head: over features (B, D).
        attention: module over the feature map, for example ``ModulatedAttention``.
        fc: Linear(feature_dim, D), followed here by a ReLU; see `feature_layer`.

    Attributes:
        base: weights that the backbone started from and that are not trained, with their keys in
            the state dict; None where there are none.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: Head,
        attention: nn.Module | None = None,
        fc: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.attention = attention
        self.fc = fc
        self.head = head
        self.base: Base | None = None
        self._frozen: tuple[str, ...] = ()
        self._still: tuple[str, ...] = ()

    @property
    def feature_dim(self) -> int:
        """D of the features."""
        return int(self.backbone.feature_dim if self.fc is None else self.fc.out_features)  # type: ignore[arg-type]

    def features(self, images: Tensor) -> Tensor:
        """(B, D): what the head and the memory see.

        Features of the backbone that were kept, (B, feature_dim, 1, 1), are taken as they are.
        """
        kept = images.shape[1:] == (self.backbone.feature_dim, 1, 1)
        maps = images if kept else self.backbone(images)
        if self.attention is not None:
            maps = self.attention(maps)
        pooled = maps.mean(dim=(2, 3))
        return pooled if self.fc is None else torch.relu(self.fc(pooled))

    def forward(self, images: Tensor) -> Tensor:
        """(B, classes) logits."""
        return self.head(self.features(images))

    def freeze(self, parts: Iterable[str]) -> OLTRModel:
        """Stop training the named parts (``backbone``, ``backbone.layer1``, ``fc``, ...).

        A frozen part keeps eval mode for good, so its BatchNorm statistics stand still too.

        Raises:
            ValueError: no such part.
        """
        self._frozen = tuple(parts)
        for name in self._frozen:
            try:
                part = self.get_submodule(name)
            except AttributeError:
                raise ValueError(
                    f"OLTRModel.freeze: no part named {name!r}; there are "
                    f"{', '.join(n for n, _ in self.named_children())} and parts of them"
                ) from None
            part.requires_grad_(False)
        return self.train(self.training)

    def hold_statistics(self) -> OLTRModel:
        """Keep the backbone's BatchNorm in eval mode for good, whatever of it is trained."""
        self._still = tuple(f"backbone.{name}" for name in batchnorms(self.backbone))
        return self.train(self.training)

    def train(self, mode: bool = True) -> OLTRModel:
        super().train(mode)
        for name in (*self._frozen, *self._still):
            self.get_submodule(name).eval()
        return self

    def learned_state(self) -> dict[str, Tensor]:
        """The state dict without the weights of `base`."""
        left_out = frozenset() if self.base is None else self.base.keys
        return {k: v for k, v in self.state_dict().items() if k not in left_out}

    def load_learned(self, state: Mapping[str, Tensor]) -> None:
        """Load what `learned_state` gave; the weights of `base` stay."""
        if self.base is not None:
            own = self.state_dict()
            state = {**{k: own[k] for k in self.base.keys}, **state}
        self.load_state_dict(state)
