"""Few-shot learning without forgetting: weights of the classes with few images are generated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oltr_ext import ops
from oltr_ext.nn.checks import check_features, check_labels
from oltr_ext.nn.enroll import ClassTensor
from oltr_ext.nn.exact import indices
from oltr_ext.nn.heads import Gather, Head, HeadOutput, alone
from oltr_ext.nn.mark import mark
from oltr_ext.nn.rebalance import CHUNK
from oltr_ext.reference._common import wide


class FSLwFHead(Head):
    """Cosine classifier with learned weights for base classes and generated ones for the rest.

    Gidaris & Komodakis, *Dynamic Few-Shot Visual Learning without Forgetting*, CVPR 2018. With all
    features z and base weights w_b at unit length, a novel class with N images gets (Section 3.2)
    ``w' = phi_avg * mean_i z_i + phi_att * mean_i sum_b Att(phi_q z_i, k_b) w_b``, Att being the
    softmax over base classes of ``gamma cos``; the logits are ``scale cos(z, w)``. The generator
    learns on base classes that play novel: in each batch some of them lose their weight, get one
    from half of their images, and are classified, with all other base classes, on the rest.

    Here base is what has ``base_shots`` training images, and the features are those of a linear
    stage 1 on all classes, where the paper's first stage has base classes and a cosine classifier.
    The images of the novel classes are kept as features, in a buffer. In eval mode and without
    gradients, the weights generated from them are kept too, until parameters or buffers change;
    see `Head` for what torch does not count as a change.

    Args:
        feat_dim: D.
        train_counts: training images of each class, (C,).
        base_shots: smallest number that makes a base class.
        fake: base classes that play novel in a batch; at most half of those in it.

    Raises:
        ValueError: no base class.
    """

    EXACT: ClassVar = {
        **Head.EXACT,
        "position": torch.float64,
        "support_target": torch.float64,
    }

    UNSHARDED = "weights of classes with few images are made of those of all others at each step"

    position: Tensor
    support: Tensor
    support_target: Tensor
    _kept: tuple[list[Any], list[Tensor], Tensor] | None = None

    def __init__(
        self, feat_dim: int, train_counts: Sequence[int], *, base_shots: int = 20, fake: int = 5
    ) -> None:
        super().__init__()
        # they are read, which on the meta device nothing can be
        counts = torch.as_tensor(train_counts, device="cpu")
        base, kept = counts >= base_shots, int(counts[counts < base_shots].sum())
        position = torch.where(base, base.cumsum(0) - 1, -1)
        width, device = int(base.sum()), torch.get_default_device()
        if width == 0:
            raise ValueError(f"FSLwFHead: expected a class with {base_shots} images, got none")
        self.fake = fake
        self.register_buffer("position", indices(position).to(device))
        self.register_buffer("support", torch.zeros(kept, feat_dim))
        self.register_buffer("support_target", indices(torch.zeros(kept)))
        self.weight = nn.Parameter(torch.randn(width, feat_dim) * feat_dim**-0.5)
        self.keys = nn.Parameter(torch.randn(width, feat_dim) * feat_dim**-0.5)
        self.query = nn.Linear(feat_dim, feat_dim)
        nn.init.eye_(self.query.weight)
        nn.init.zeros_(self.query.bias)
        self.phi_avg = nn.Parameter(torch.ones(feat_dim))
        self.phi_att = nn.Parameter(torch.ones(feat_dim))
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.gamma = nn.Parameter(torch.tensor(10.0))

    @property
    def base(self) -> Tensor:
        """(C,) bool, the classes with learned weights."""
        return self.position > -0.5

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        state.pop(f"{prefix}base", None)  # of version 0.1, which kept it beside the positions
        super()._load_from_state_dict(state, prefix, *args)

    def make_room(self, state: Mapping[str, Any], prefix: str) -> None:
        if self.enrolled is not None or f"{prefix}enrolled" in state:
            for name in ("support", "support_target"):
                given = state.get(f"{prefix}{name}", getattr(self, name))
                setattr(self, name, torch.empty_like(given, device=self.support.device))
        super().make_room(state, prefix)

    @torch.no_grad()
    def init_from(self, weight: Tensor, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """The start: base weights from a linear classifier, novel images kept.

        Args:
            weight: (C, D).
            batches: features (B, D) and labels (B,), together the whole training set.

        Raises:
            ValueError: other images of novel classes than ``train_counts`` announced, labels that
                are no class, another shape, or features that are not finite.
        """
        novel: list[tuple[Tensor, Tensor]] = []
        width = self.weight.shape[1]
        if tuple(weight.shape) != (self.num_classes, width):
            raise ValueError(
                f"FSLwFHead.init_from: expected weight of shape {(self.num_classes, width)}, got "
                f"{tuple(weight.shape)}"
            )
        for x, y in batches:
            check_labels("FSLwFHead.init_from", y, self.num_classes)
            if tuple(x.shape) != (len(y), width) or not x.isfinite().all():
                finite = "" if x.isfinite().all() else ", not all finite"
                raise ValueError(
                    f"FSLwFHead.init_from: expected finite features of shape {(len(y), width)}, "
                    f"got {tuple(x.shape)}{finite}"
                )
            novel.append((x[~self.base[y]], y[~self.base[y]]))
        kept = sum(len(y) for _, y in novel)
        if kept != len(self.support):
            raise ValueError(
                f"FSLwFHead.init_from: expected {len(self.support)} images of novel classes, "
                f"got {kept}"
            )
        self.weight.copy_(weight[self.base])
        if kept:
            self.support.copy_(torch.cat([x for x, _ in novel]))
            self.support_target.copy_(torch.cat([y for _, y in novel]))

    def generate(
        self, features: Tensor, group: Tensor, groups: int, hidden: Tensor | None = None
    ) -> Tensor:
        """Weights (groups, D) from features (N, D) of group (N,) each.

        Args:
            hidden: (K,) bool, base classes that the attention must not see.

        Raises:
            ValueError: features, groups or ``hidden`` of another shape, or ``groups`` below 1.
            TypeError: groups that are not int64. RuntimeError: a group out of range.
        """
        check_features("FSLwFHead.generate", features, self.weight.shape[1])
        if hidden is not None and hidden.shape != self.weight.shape[:1]:
            raise ValueError(
                f"FSLwFHead.generate: expected hidden of shape ({len(self.weight)},), got "
                f"{tuple(hidden.shape)}"
            )
        z = F.normalize(wide(features), dim=1)
        keys = F.normalize(wide(self.keys), dim=1).t()
        weight = F.normalize(wide(self.weight), dim=1)

        def recall(z: Tensor) -> Tensor:
            query = wide(self.query(z.to(self.keys.dtype)))
            match = self.gamma * (F.normalize(query, dim=1) @ keys)
            if hidden is not None:
                match = match.masked_fill(hidden, -torch.inf)
            return torch.softmax(match, dim=1) @ weight

        step = max(1, CHUNK // len(weight))
        recalled = torch.cat([recall(rows) for rows in z.split(step)])
        average, attended = (ops.class_means(wide(v), group, groups).means for v in (z, recalled))
        return self.phi_avg * average + self.phi_att * attended

    def _all_weights(self) -> Tensor:
        """(C, D): those of the base classes, and generated ones for the rest."""
        made = self.weight.new_zeros(self.num_classes, self.weight.shape[1])
        if len(self.support):
            made = self.generate(self.support, _whole(self.support_target), self.num_classes)
        learned = self.weight[_whole(self.position).clamp_min(0)]
        return torch.where(self.base[:, None], learned, made)

    def _kept_weights(self) -> Tensor:
        """As `_all_weights`, made anew only when a parameter or buffer is another or has changed.

        Not kept: in training, with gradients, in another precision and while compiling.
        """
        if (
            self.training
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled(self.weight.device.type)
            or torch.compiler.is_compiling()
        ):
            self._kept = None
            return self._all_weights()
        made_of = [*self.parameters(), *self.buffers()]
        state = mark(made_of, trained=True)
        if state is None:
            return self._all_weights()
        if self._kept is None or self._kept[0] != state:
            # with the tensors themselves: while they live, no other can have their id
            self._kept = state, made_of, self._all_weights()
        return self._kept[2]

    def train(self, mode: bool = True) -> Any:
        self._kept = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._kept = None  # a cast keeps the parameters and their versions
        return super()._apply(fn, recurse)

    @property
    def num_classes(self) -> int:
        return len(self.position)

    @property
    def feat_dim(self) -> int:
        return self.weight.shape[1]

    def _class_tensors(self, what: str) -> list[ClassTensor]:
        return [ClassTensor(self, "position")]

    def _rows_of(self, mean: Tensor, count: Tensor) -> list[Tensor]:
        """A class that joins is one more with few images, whose weights are generated."""
        return [torch.full_like(mean[:, 0], -1)]

    def _keep(self, features: Tensor, ids: Tensor) -> dict[str, Tensor]:
        support, target = features.to(self.support), ids.to(self.support_target)
        return {
            "support": self._rooms.grown("support", self.support, support),
            "support_target": self._rooms.grown("target", self.support_target, target),
        }

    def _drop(self, ids: list[int]) -> dict[str, Tensor]:
        gone = torch.tensor(ids, dtype=torch.int64, device=self.support.device)
        stays = ~torch.isin(_whole(self.support_target), gone)
        if stays.all():
            return {}
        return {"support": self.support[stays], "support_target": self.support_target[stays]}

    def _forget(self, ids: list[int]) -> None:
        self._kept = None

    def outputs(self, features: Tensor) -> HeadOutput:
        logits = self._cosine(features, self._kept_weights())
        # a class without images has no weight, and is no answer
        absent = (~self.base).index_fill(0, _whole(self.support_target), False)
        logits = logits.masked_fill(absent, -torch.inf)
        return HeadOutput(self.without_removed(logits), features=features)

    def loss(self, features: Tensor, target: Tensor, *, gather: Gather = alone) -> Tensor:
        """Cross-entropy of an episode over the rows (B, D) whose label (B,) is a base class.

        Which classes play novel comes from torch's default generator, which must stand at the same
        place in every process: the whole batch is one episode.

        Raises:
            RuntimeError: a label out of range.
        """
        features, target = gather(features, target)
        wrong = ((target < 0) | (target >= self.num_classes)).nonzero()
        if len(wrong):
            at = int(wrong[0])
            raise RuntimeError(
                f"FSLwFHead.loss: expected every target in [0, {self.num_classes}), "
                f"got {int(target[at])} at row {at}"
            )
        known = self.base[target]
        features, row = features[known], _whole(self.position)[target[known]]
        if len(row) == 0:
            return self._nothing()
        same = row[:, None] == row
        several = row[same.sum(dim=1) > 1].unique()
        most = min(self.fake, len(row.unique()) // 2)
        fake = several[torch.randperm(len(several), device="cpu")[:most].to(several.device)]
        hidden = torch.zeros(len(self.weight), dtype=torch.bool, device=row.device)
        hidden[fake] = True
        first_half = same.tril(diagonal=-1).sum(dim=1) < same.sum(dim=1) // 2
        return self.episode_loss(features, row, hidden, hidden[row] & first_half)

    def episode_loss(
        self, features: Tensor, row: Tensor, hidden: Tensor, support: Tensor
    ) -> Tensor:
        """Mean cross-entropy over the rows that are not support.

        Args:
            features: (B, D). row: (B,) base class of each, in [0, K).
            hidden: (K,) bool, classes that play novel; each needs a support row.
            support: (B,) bool, rows that their weights are generated from.
        """
        weight: Tensor = self.weight
        if hidden.any():
            made = self.generate(features[support], row[support], len(weight), hidden)
            weight = torch.where(hidden[:, None], made, weight)
        loss = F.cross_entropy(self._cosine(features[~support], weight), row[~support])
        return loss if hidden.any() else loss + self._nothing()

    def _nothing(self) -> Tensor:
        """0, with a gradient of 0 for each parameter: DistributedDataParallel waits for all."""
        return torch.stack([p.sum() for p in self.parameters()]).sum() * 0

    def _cosine(self, features: Tensor, weight: Tensor) -> Tensor:
        z = F.normalize(wide(features), dim=1)
        return self.scale * wide(z @ F.normalize(wide(weight), dim=1).t())

    def extra_repr(self) -> str:
        return f"base={len(self.weight)} of {self.num_classes}, fake={self.fake}"


def _whole(values: Tensor) -> Tensor:
    """int64 of what `indices` made."""
    return values.round().long()
