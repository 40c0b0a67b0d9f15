"""How far a feature lies from those of training, whatever the head makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from oltr_ext import ops
from oltr_ext.nn.bank_fits import (
    Evenly,
    bank_means,
    default_neighbours,
    kth_distance,
    null_space,
    whitening,
)
from oltr_ext.nn.growing_bank import GrowingBank
from oltr_ext.nn.layout import WHOLE, Layout, is_dtensor
from oltr_ext.nn.scores import BANK_SCORES, SUM_SCORES, SUMMED
from oltr_ext.ops import Shard

SAMPLE = 1 << 14
"""Training features that ``vim`` is fitted on: all, or as many, evenly spaced in each class."""

NEEDS = {  # tensors of each score
    "mahalanobis": ("whitening", "means"),
    "nearest_feature": ("rows",),
    "relative_mahalanobis": ("whitening", "means", "background", "middle"),
    "knn": ("rows", "neighbours"),
    "vim": ("residual", "origin", "alpha"),
}


class FeatureBank(GrowingBank):
    """Scores of features by the training's; as all scores, higher means known.

    Of features z of unit length (Mueller & Hein, ICML 2025):

    ``mahalanobis``: minus the smallest ``sqrt((z - m_c)' S^-1 (z - m_c))`` over class means m_c,
    with one covariance S pooled over classes (Lee et al., NeurIPS 2018), so that a class of one
    image needs none of its own. S is shrunk towards a multiple of the identity by as much as its
    size and the number of features ask (Chen et al. 2010, OAS). It whitens once; then it is
    `ops.nearest_centroid`.

    ``relative_mahalanobis``: minus the smallest ``(z - m_c)' S^-1 (z - m_c) - (z - m)' T^-1 (z -
    m)``, with mean m and covariance T, shrunk likewise, of all features (Ren et al. 2021).

    ``nearest_feature``: minus the distance to the nearest training feature, by
    `ops.nearest_centroid` over all that are kept; ``knn``: to the k-th nearest (Sun et al., ICML
    2022), exact over them, whatever class they are of.

    Of features x as they are:

    ``vim``: ``logsumexp(logits) - alpha |R'(x - o)|`` (Wang et al., CVPR 2022), R spanning what is
    left beside the principal directions of the training's x - o, see `null_space`, and alpha the
    sum of the largest logits of training (their sizes, for heads whose logits may be negative) over
    that of these norms. o is the head's `origin`.

    Sums, named by their parts with a ``+`` between (`SUM_SCORES`), add the largest logit and one or
    two of them, each first shifted and scaled to mean 0 and deviation 1 over features of known
    classes that were not trained on.

    Empty, and without an entry in a state dict, until `fit`; one that holds a bank can be loaded
    into an empty one, also with fewer scores, of an earlier version. Keeps float32 however the
    module is cast. A head has one, empty at first::

        head.fit_bank([(features, target)], target.bincount(minlength=head.num_classes))
        head.bank.standardise(head.scores(head.outputs(held_out)))  # for the sums alone
        head.set_threshold(value, "max_logit+nearest_feature")

    Attributes:
        whitening, background: (D, D), lower triangular, the inverses of a root of S and of T.
        means: (K, D), whitened, of the K classes that have features.
        middle: (D,), m whitened by ``background``.
        rows: (N, D), unit length.
        neighbours: (k,), 1 to k: a graph knows shapes, and no values.
        residual, origin, alpha: R (D, D - P), o (D,) and a number.
        location, scale: (4,), of `SUMMED`.
    """

    TENSORS = (
        "whitening",
        "means",
        "rows",
        "location",
        "scale",
        "background",
        "middle",
        "neighbours",
        "residual",
        "origin",
        "alpha",
    )

    whitening: Tensor | None
    means: Tensor | None
    rows: Tensor | None
    location: Tensor | None
    scale: Tensor | None
    background: Tensor | None
    middle: Tensor | None
    neighbours: Tensor | None
    residual: Tensor | None
    origin: Tensor | None
    alpha: Tensor | None

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
        neighbours: int | None = None,
        max_logit: Callable[[Tensor], Tensor] | None = None,
        origin: Tensor | None = None,
        layout: Layout = WHOLE,
    ) -> None:
        """Take the training's features, in one pass; sums run in float64 on the CPU.

        Args:
            batches: features (B, D) and labels (B,), together the training set, in order.
            counts: (C,) training images of each class.
            most: keep no more rows than that for ``nearest_feature`` and ``knn``; 0: none, and
                neither score. Where there are more, the largest classes keep as many each as fit,
                evenly spaced; means and covariances are of all.
            neighbours: k of ``knn``, all rows where there are fewer; None: see
                `default_neighbours`.
            max_logit: features (N, D) to their largest logits (N,), for ``vim``; None: without it.
            origin: (D,) o of ``vim``; None: 0.
            layout: where the head's classes are. Processes that share them, each of which is given
                all batches, share the means.

        Raises:
            ValueError: features that are not finite, or none; more of a class than ``counts`` says;
                a k below 1.
            RuntimeError: a label out of range. Whatever is raised, the bank stays as it was.
        """
        if neighbours is not None and neighbours < 1:
            raise ValueError(
                f"FeatureBank.fit: expected neighbours of at least 1, got {neighbours}"
            )
        device = None if self.whitening is None else self.whitening.device
        counts = torch.as_tensor(counts, device="cpu")
        keep, take = Evenly(counts, most), Evenly(counts, SAMPLE)
        kept: list[Tensor] = []
        sample: list[Tensor] = []
        moment: Tensor | None = None
        lengths = 0.0

        def unit() -> Iterator[tuple[Tensor, Tensor]]:
            nonlocal moment, device, lengths
            for features, target in batches:
                device = device or features.device
                x, y = features.cpu().float(), target.cpu()
                z = F.normalize(x.double(), dim=1)
                if not torch.isfinite(z).all():
                    raise ValueError("FeatureBank.fit: expected finite features, got NaN or others")
                lengths += float(features.double().norm(dim=1).sum())
                moment = z.t() @ z if moment is None else moment.addmm_(z.t(), z)
                yield z, y  # which also checks the labels
                if keep.limit != 0:
                    kept.append(z[keep(y)].float())
                if max_logit is not None:
                    sample.append(x[take(y)])

        found = bank_means(unit(), counts, layout)
        assert moment is not None
        made: dict[str, Tensor] = {}
        total, weighted = int(found.counts.sum()), found.means.t() * found.own
        between = found.summed(weighted @ found.means)
        root = whitening(moment - between, total - len(found.counts))
        made["whitening"] = root.float()
        made["means"] = found.shared((found.means @ root.t()).float())
        middle = found.summed(weighted.sum(dim=1)) / total
        root = whitening(moment - total * torch.outer(middle, middle), total - 1)
        made["background"], made["middle"] = root.float(), (root @ middle).float()
        if kept and len(rows := torch.cat(kept)):
            k = default_neighbours(found.counts) if neighbours is None else neighbours
            k = min(k, len(rows))
            made["rows"] = rows
            made["neighbours"] = torch.arange(1, k + 1, dtype=torch.float32, device=rows.device)
        if max_logit is not None:
            made.update(_fit_vim(torch.cat(sample), max_logit, origin))
        # As files hold them: products of other strides, such as those of LAPACK's results, may
        # differ in their last bits, and so would what was fitted and what is loaded.
        made = {name: value.contiguous().to(device) for name, value in made.items()}
        self.of_training(lengths / total, device)
        for name in self.TENSORS:
            setattr(self, name, made.get(name))

    @property
    def names(self) -> tuple[str, ...]:
        """The scores that it has by now."""
        own = [
            name
            for name, needs in NEEDS.items()
            if all(getattr(self, tensor) is not None for tensor in needs)
        ]
        summed = SUMMED[: 0 if self.location is None else len(self.location)]
        ready = {"max_logit", *own} & {*summed}
        return (*own, *(name for name, parts in SUM_SCORES.items() if ready.issuperset(parts)))

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
        if self.whitening is None:
            raise ValueError("FeatureBank.standardise: expected a bank that was fitted")
        for name in SUMMED:
            given = scores.get(name)
            if name != "max_logit" and name not in self.names:
                continue
            if given is None or len(given) == 0 or not torch.isfinite(given).all():
                got = "none" if given is None or len(given) == 0 else "others"
                raise ValueError(
                    f"FeatureBank.standardise: expected finite scores {name}, got {got}"
                )
        none = self.whitening.new_zeros(1)
        rows = [scores.get(name, none) for name in SUMMED]
        location = [float(row.double().mean()) for row in rows]
        scale = [float(row.double().std(correction=0)) or 1.0 for row in rows]
        device = self.whitening.device
        self.location, self.scale = (
            torch.tensor(values, dtype=torch.float32, device=device) for values in (location, scale)
        )

    def scores(
        self,
        features: Tensor,
        max_logit: Tensor,
        names: Iterable[str] = BANK_SCORES,
        *,
        energy: Tensor | None = None,
        layout: Layout = WHOLE,
    ) -> dict[str, Tensor]:
        """The named scores, as far as it has them.

        Args:
            features: (B, D).
            max_logit: (B,) in the dtype of the result.
            energy: (B,) logsumexp of the logits, without which there is no ``vim``.
            layout: as in `fit`.
        """
        asked = set(names) - ({"vim"} if energy is None else set())
        wanted = [name for name in self.names if name in asked]
        needed = {part for name in wanted for part in SUM_SCORES.get(name, (name,))} - {"max_logit"}
        if not needed:
            return {}
        own = self._own(needed, features, energy, layout)
        found = {name: score.to(max_logit.dtype) for name, score in own.items()}
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
        kept = {tensor for part in SUM_SCORES.get(name, (name,)) for tensor in NEEDS.get(part, ())}
        kept |= {"location", "scale"} if name in SUM_SCORES else set()
        for tensor in {*self.TENSORS} - kept:
            setattr(self, tensor, None)

    def _own(
        self, names: set[str], features: Tensor, energy: Tensor | None, layout: Layout
    ) -> dict[str, Tensor]:
        """Each of `FEATURE_SCORES` that is named, and that there are tensors for."""
        # where there is float64, whitening in it costs D x D a row and its rounding never shows
        x = features.float() if features.device.type == "mps" else features.double()
        z, found = F.normalize(x), {}
        if "nearest_feature" in names:
            assert self.rows is not None
            found["nearest_feature"] = -ops.nearest_centroid(z.float(), self.rows).distance
        if "knn" in names:
            assert self.rows is not None and self.neighbours is not None
            found["knn"] = -kth_distance(z, self.rows, len(self.neighbours))
        if "vim" in names:
            assert energy is not None and self.residual is not None
            assert self.origin is not None and self.alpha is not None
            left = ((x - self.origin.to(x.dtype)) @ self.residual.to(x.dtype)).norm(dim=1)
            found["vim"] = energy - self.alpha.to(x.dtype) * left
        if not {"mahalanobis", "relative_mahalanobis"} & names:
            return found
        assert self.whitening is not None and self.means is not None
        white = z @ self.whitening.t().to(z.dtype)
        distance = self._to_means(white.float(), layout)
        if "mahalanobis" in names:
            found["mahalanobis"] = -distance
        if "relative_mahalanobis" in names:
            assert self.background is not None and self.middle is not None
            gap = z @ self.background.t().to(z.dtype) - self.middle.to(z.dtype)
            found["relative_mahalanobis"] = gap.square().sum(dim=1) - distance.to(z.dtype).square()
        return found

    def _to_means(self, white: Tensor, layout: Layout) -> Tensor:
        """(B,) distances of whitened features to the nearest mean."""
        means = self.means
        assert means is not None
        if not is_dtensor(means):
            return ops.nearest_centroid(white, means).distance
        assert layout.shard is not None
        local: Tensor = means._local_tensor  # type: ignore[attr-defined]
        shard = Shard.of(len(means), layout.shard.group)
        found = layout.each(
            lambda x: (ops.nearest_centroid(x, local, shard=shard).distance,), white
        )
        distance: Tensor = found[0]
        return distance

    def _sum(self, name: str, max_logit: Tensor, scores: Mapping[str, Tensor]) -> Tensor:
        assert self.location is not None and self.scale is not None
        location, scale = self.location.to(max_logit), self.scale.to(max_logit)
        total = torch.zeros_like(max_logit)
        for part in SUM_SCORES[name]:
            at = SUMMED.index(part)
            value = max_logit if part == "max_logit" else scores[part]
            total = total + (value - location[at]) / scale[at]
        return total

    def make_room(self, state: Mapping[str, Any], prefix: str, device: torch.device) -> None:
        """Before a state dict is loaded: buffers of the shapes that it has."""
        names = (*self.TENSORS, *self.LATER)
        given = {name: state.get(f"{prefix}{name}") for name in names}
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


def _fit_vim(
    x: Tensor, max_logit: Callable[[Tensor], Tensor], origin: Tensor | None
) -> dict[str, Tensor]:
    start = x.new_zeros(x.shape[1]) if origin is None else origin.cpu()
    gap = x.double() - start.double()
    space = null_space(gap)
    length, logit = (gap @ space).norm(dim=1).sum(), max_logit(x).cpu().double().abs().sum()
    # features that never leave the principal space have no residual to match
    alpha = logit / length if length > 1e-6 * gap.norm(dim=1).sum() else 0 * length
    return {"residual": space.float(), "origin": start.float(), "alpha": alpha.float()}
