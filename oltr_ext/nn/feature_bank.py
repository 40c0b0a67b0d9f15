"""How far a feature lies from those of training, whatever the head makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oltr_ext import ops
from oltr_ext.nn.memory import means_over
from oltr_ext.nn.scores import BANK_SCORES, FEATURE_SCORES, SUM_SCORES


class FeatureBank(nn.Module):
    """Two distances of features of unit length to the training's, and their sums with a logit.

    ``mahalanobis``: the smallest ``sqrt((z - m_c)' S^-1 (z - m_c))`` over class means m_c, with one
    covariance S pooled over classes (Lee et al., NeurIPS 2018; of unit length: Mueller & Hein, ICML
    2025). S is shrunk towards a multiple of the identity by as much as its size and the number of
    features ask (Chen et al. 2010, OAS). It whitens once; then it is `ops.nearest_centroid`.

    ``nearest_feature``: the distance to the nearest training feature (Sun et al., ICML 2022, with
    k = 1), by `ops.nearest_centroid` over all that are kept.

    As scores both have their sign turned: higher means known. ``max_logit+mahalanobis`` and
    ``max_logit+nearest_feature`` add the largest logit to them, each first shifted and scaled to
    mean 0 and deviation 1 over features of known classes that were not trained on.

    Empty, and without an entry in a state dict, until `fit`; one that holds a bank can be loaded
    into an empty one. Keeps float32 however the module is cast. A head has one, empty at first::

        head.bank.fit([(features, target)], target.bincount(minlength=head.num_classes))
        head.bank.standardise(head.scores(head.outputs(held_out)))  # for the sums alone
        head.set_threshold(value, "max_logit+nearest_feature")

    Attributes:
        whitening: (D, D), lower triangular, the inverse of a root of S.
        means: (K, D), whitened, of the K classes that have features.
        rows: (N, D), unit length.
        location, scale: (3,), of the largest logit and the two distance scores.
    """

    TENSORS = ("whitening", "means", "rows", "location", "scale")

    whitening: Tensor | None
    means: Tensor | None
    rows: Tensor | None
    location: Tensor | None
    scale: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        for name in self.TENSORS:
            self.register_buffer(name, None)

    @torch.no_grad()
    def fit(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        counts: Tensor | Sequence[int],
        *,
        most: int | None = None,
    ) -> None:
        """Take the training's features, in one pass; sums run in float64 on the CPU.

        Args:
            batches: features (B, D) and labels (B,), together the training set, in order.
            counts: (C,) training images of each class.
            most: keep no more rows than that for ``nearest_feature``; 0: none, and not that score.
                Where there are more, the largest classes keep as many each as fit, evenly spaced;
                means and covariance are of all.

        Raises:
            ValueError: features that are not finite, or none; more of a class than ``counts`` says.
            RuntimeError: a label out of range.
        """
        device = None if self.whitening is None else self.whitening.device
        counts = torch.as_tensor(counts).cpu()
        limit, seen = _largest_share(counts, most), torch.zeros_like(counts)
        kept: list[Tensor] = []
        moment: Tensor | None = None

        def unit() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal moment, device
            for features, target in batches:
                device = device or features.device
                z, y = F.normalize(features.cpu().double(), dim=1), target.cpu()
                if not torch.isfinite(z).all():
                    raise ValueError("FeatureBank.fit: expected finite features, got NaN or others")
                moment = z.t() @ z if moment is None else moment.addmm_(z.t(), z)
                yield z, y  # which also checks the labels
                if limit != 0:
                    kept.append(z[_evenly(y, seen, counts, limit)].float())

        means, number = means_over(unit(), len(counts))
        assert moment is not None
        if (number > counts).any():
            c = int((number > counts).nonzero()[0])
            raise ValueError(
                f"FeatureBank.fit: class {c} has {number[c]} features, and counts say {counts[c]}"
            )
        pooled = moment - (means.t() * number) @ means  # within classes
        self.whitening = _whitening(pooled, int(number.sum()), int((number > 0).sum()))
        self.means = (means[number > 0] @ self.whitening.t()).float()
        self.whitening = self.whitening.float()
        self.rows = torch.cat(kept) if kept else None
        self.location = self.scale = None
        self.to(device)

    @property
    def names(self) -> tuple[str, ...]:
        """The scores that it has by now."""
        held = {"mahalanobis": self.whitening, "nearest_feature": self.rows}
        own = [name for name, tensor in held.items() if tensor is not None]
        sums = SUM_SCORES if self.location is not None else {}
        return (*own, *(name for name, (_, other) in sums.items() if other in own))

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(b.nbytes for b in self.buffers())

    @torch.no_grad()
    def standardise(self, scores: Mapping[str, Tensor]) -> None:
        """Learn what the sums shift and scale by.

        Args:
            scores: (N,) ``max_logit`` and the scores of this bank, of features of known classes
                that were not trained on.

        Raises:
            ValueError: the bank is empty, a score of it or ``max_logit`` is missing, there is no
                feature, or a score that is not finite.
        """
        held = [name for name in self.names if name in FEATURE_SCORES]
        if self.whitening is None:
            raise ValueError("FeatureBank.standardise: expected a bank that was fitted")
        for name in ("max_logit", *held):
            given = scores.get(name)
            if given is None or len(given) == 0 or not torch.isfinite(given).all():
                got = "none" if given is None or len(given) == 0 else "others"
                raise ValueError(
                    f"FeatureBank.standardise: expected finite scores {name}, got {got}"
                )
        rows = [scores.get(name, torch.zeros(1)) for name in ("max_logit", *FEATURE_SCORES)]
        location = [float(row.double().mean()) for row in rows]
        scale = [float(row.double().std(correction=0)) or 1.0 for row in rows]
        device = self.whitening.device
        self.location, self.scale = (
            torch.tensor(values, dtype=torch.float32, device=device) for values in (location, scale)
        )

    def scores(
        self, features: Tensor, max_logit: Tensor, names: Iterable[str] = BANK_SCORES
    ) -> dict[str, Tensor]:
        """The named scores, as far as it has them.

        Args:
            features: (B, D).
            max_logit: (B,) in the dtype of the result.
        """
        wanted = [name for name in self.names if name in set(names)]
        needed = {SUM_SCORES[name][1] if name in SUM_SCORES else name for name in wanted}
        found = {name: self._score(name, features).to(max_logit.dtype) for name in needed}
        return {
            name: self._sum(name, max_logit, found) if name in SUM_SCORES else found[name]
            for name in wanted
        }

    def sums(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums of scores (N,) that are there already."""
        names = [name for name in self.names if name in SUM_SCORES]
        return {name: self._sum(name, scores["max_logit"], scores) for name in names}

    def keep_for(self, name: str) -> None:
        """Drop what the named score does not need."""
        other = SUM_SCORES[name][1] if name in SUM_SCORES else name
        if other != "nearest_feature":
            self.rows = None
        if other != "mahalanobis":
            self.whitening = self.means = None
        if name not in SUM_SCORES:
            self.location = self.scale = None

    def _score(self, name: str, features: Tensor) -> Tensor:
        # where there is float64, whitening in it costs D x D a row and its rounding never shows
        z = F.normalize(features.float() if features.device.type == "mps" else features.double())
        if name == "nearest_feature":
            assert self.rows is not None
            return -ops.nearest_centroid(z.float(), self.rows).distance
        assert self.whitening is not None and self.means is not None
        white = z @ self.whitening.t().to(z.dtype)
        return -ops.nearest_centroid(white.float(), self.means).distance

    def _sum(self, name: str, max_logit: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
        assert self.location is not None and self.scale is not None
        location, scale = self.location.to(max_logit), self.scale.to(max_logit)
        total = torch.zeros_like(max_logit)
        for part in SUM_SCORES[name]:
            at = ("max_logit", *FEATURE_SCORES).index(part)
            value = max_logit if part == "max_logit" else scores[part]
            total = total + (value - location[at]) / scale[at]
        return total

    def make_room(self, state: Mapping[str, Any], prefix: str, device: torch.device) -> None:
        """Before a state dict is loaded: buffers of the shapes that it has."""
        given = {name: state.get(f"{prefix}{name}") for name in self.TENSORS}
        if any(value is not None for value in given.values()):
            for name, value in given.items():
                room = None if value is None else torch.empty_like(value, device=device)
                setattr(self, name, room)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, value in kept.items():
            moved = self._buffers[name]
            if value is not None and moved is not None and moved.dtype != value.dtype:
                self._buffers[name] = value.to(moved.device)  # moved, not cast
        return self

    def extra_repr(self) -> str:
        return f"scores={', '.join(self.names) or 'none'}"


def _whitening(pooled: Tensor, rows: int, classes: int) -> Tensor:
    """W (D, D) float64 such that W W' is the inverse of the shrunk covariance.

    Args:
        pooled: (D, D) float64, sum over rows of products of deviations from the class's mean.
    """
    width = len(pooled)
    free = max(rows - classes, 1)
    covariance = (pooled + pooled.t()) / (2 * free)
    mean = covariance.trace() / width
    eye = torch.eye(width, dtype=pooled.dtype)
    if mean <= 1e-12:  # a feature a class: nothing is known of deviations
        return eye
    square = covariance.square().mean()
    below = (free + 1) * (square - mean**2 / width)
    shrink = float((square + mean**2) / below) if below > 0 else 1.0
    shrink = min(shrink, 1.0)
    root = torch.linalg.cholesky((1 - shrink) * covariance + shrink * mean * eye)
    return torch.linalg.solve_triangular(root, eye, upper=False)


def _largest_share(counts: Tensor, most: int | None) -> int | None:
    """How many rows a class may keep so that all keep `most` at most; None: no limit."""
    if most is None or int(counts.sum()) <= most:
        return None
    low, high = 0, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high) if int(counts.clamp_max(middle).sum()) <= most else (low, middle - 1)
        )
    return low


def _evenly(target: Tensor, seen: Tensor, counts: Tensor, limit: int | None) -> Tensor:
    """(B,) bool, which rows are kept so that of n of a class `limit` are, evenly spaced. `seen`
    (C,) counts the rows of earlier batches, and is counted on."""
    if limit is None:
        return torch.ones(len(target), dtype=torch.bool)
    order = target.argsort(stable=True)
    first = torch.searchsorted(target[order], target)
    place = torch.empty_like(target)
    place[order] = torch.arange(len(target))
    place = place - first + seen[target]  # among the rows of its class
    seen += target.bincount(minlength=len(seen))
    return place * limit % counts[target].clamp_min(1) < limit
