"""The visual memory: one centroid a class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from oltr_ext import ops
from oltr_ext.nn.checks import alike, check_features, check_in_memory, check_own, check_sizes
from oltr_ext.nn.layout import WHOLE, ClassRows, Layout
from oltr_ext.nn.mark import mark_values
from oltr_ext.nn.parted import closest_rows
from oltr_ext.ops.bank import rows_of
from oltr_ext.ops.class_means import Means
from oltr_ext.ops.nearest_centroid import Nearest
from oltr_ext.ops.shard import Shard, summed
from oltr_ext.reference._common import wide


def means_over(
    batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, layout: Layout = WHOLE
) -> Means:
    """Class means over batches, in one pass: memory is that of the C x D result.

    Sums run in float64, so that the result does not depend on how the data was batched.

    Args:
        batches: features (B, D), any floating dtype, and labels (B,) int64 in [0, num_classes).
        num_classes: C.
        layout: where they are; of a shard, sums are those of its own classes.

    Returns:
        (means (C, D) float64, counts (C,) int64) on the CPU; zero for a class without rows.

    Raises:
        ValueError: no row at all, or features of another shape than before. TypeError: labels that
            are no integers. RuntimeError: a label out of range.
    """
    cpu, wide = torch.device("cpu"), torch.float64
    first, last = layout.bounds(num_classes)
    sums = torch.empty(0, dtype=wide, device=cpu)
    counts = torch.zeros(last - first, dtype=torch.int64, device=cpu)
    for features, target in batches:
        if len(features) == 0:
            continue
        width = sums.shape[1] if sums.dim() == 2 else features.shape[-1]
        check_features("class means", features, width)
        if target.is_floating_point():
            raise TypeError(f"class means: expected labels of torch.int64, got {target.dtype}")
        if sums.dim() == 1:
            sums = torch.zeros(len(counts), features.shape[1], dtype=wide, device=cpu)
        target = target.cpu()
        wrong = ((target < 0) | (target >= num_classes)).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise RuntimeError(
                f"class means: expected labels in [0, {num_classes}), "
                f"got {int(target[first])} at row {first}"
            )
        if layout.shard is not None:
            own = (target >= first) & (target < last)
            features, target = features.cpu()[own], target[own] - first
            if len(target) == 0:
                continue
        # only the classes of the batch: their number, not C, sets the cost of a batch
        classes, row = target.unique(return_inverse=True)
        means, count = ops.class_means(features.to(cpu, wide), row, len(classes))
        sums[classes] += means * count.unsqueeze(1)
        counts[classes] += count
    sums, counts = layout.sums_of_replicas(sums, counts)
    if sums.dim() == 1:
        raise ValueError("class means: expected at least one feature, got none")
    return Means(sums.div_(counts.clamp(min=1).unsqueeze(1)), counts)


class CentroidMemory(ClassRows):
    """Class centroids (C, D) that start as class means and learn, or follow, from there.

    Args:
        num_classes: C.
        feat_dim: D.
        learnable: whether the centroids are a parameter (trained by the centroid loss) or a buffer
            (moved by :meth:`update`).
        device: of the centroids.

    Attributes:
        centroids: (C, D).
        counts: (C,) int64, features seen of each class; 0 marks a class without a centroid yet.
    """

    CLASS_TENSORS: ClassVar = {"centroids": 0.0, "counts": 0}

    centroids: Tensor
    counts: Tensor
    # What `present` was found to be, and of which counts. No buffer: there is one where a class
    # lacks alone, and whoever goes through two models' buffers side by side would not find it.
    _present: Tensor | None = None
    _complete = False  # whether every class has a centroid
    _found_of: Any = ()
    _places: Shard | None = None  # of its classes among those with a centroid

    def __init__(
        self,
        num_classes: int,
        feat_dim: int,
        *,
        learnable: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_sizes("CentroidMemory", num_classes, feat_dim)
        centroids = torch.zeros(num_classes, feat_dim, device=device)
        if learnable:
            self.centroids = nn.Parameter(centroids)
        else:
            self.register_buffer("centroids", centroids)
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64, device=device))

    @property
    def present(self) -> Tensor | None:
        """(K,) int64, the classes with a centroid, in order; of a shard those of its own, counted
        from its first.

        None where that is all of them, or none (nothing was counted: the centroids are taken as
        they are). The others take no part: they are no feature's nearest class.
        """
        # a compiled graph cannot ask: it has what was found before
        if not torch.compiler.is_compiling():
            now = mark_values(self._counted)
            if now is None or now != self._found_of:  # None: torch does not say
                self._find_present()
        return self._present

    def train(self, mode: bool = True) -> Any:
        """As of any module; then which classes have a centroid is found anew."""
        if self.layout.shard is None:  # else all processes must ask at once: see `refresh`
            self._found_of = ()
        return super().train(mode)

    @property
    def _counted(self) -> Tensor:
        return self.layout.raw(self.counts)

    def there(self, *parts: Tensor) -> list[Tensor]:
        """Rows of the classes with a centroid that this process has, of tensors (C, ...) or of
        streamed banks."""
        present = self.present
        own = [self.layout.own(part) for part in parts]
        return own if present is None else [rows_of(part, present) for part in own]

    @property
    def places(self) -> Shard | None:
        """Which of the classes with a centroid are here; None: all of them."""
        return self.layout.shard if self.present is None else self._places

    def classes(self, index: Tensor) -> Tensor:
        """Classes (B,) of indices (B,) among those with a centroid."""
        present, shard = self.present, self._places
        if present is None:
            return index
        if shard is None or self.layout.shard is None:
            return present[index]
        here = (index >= shard.start) & (index < shard.stop)
        if shard.size == 0:
            return summed(shard, torch.zeros_like(index))
        own = present[torch.where(here, index - shard.start, 0)] + self.layout.shard.start
        return summed(shard, torch.where(here, own, 0))  # of its owner alone

    @property
    def num_classes(self) -> int:
        return self.centroids.shape[0]

    @property
    def feat_dim(self) -> int:
        return self.centroids.shape[1]

    def forward(self, x: Tensor) -> Nearest:
        """Distance (B,) of features (B, D) to the nearest centroid, and its class (B,) int64.

        Raises:
            TypeError, ValueError: as :func:`oltr_ext.ops.nearest_centroid`.
        """
        found: Nearest = self.layout.each(self._nearest, x)
        return found

    def _nearest(self, x: Tensor) -> Nearest:
        found = ops.nearest_centroid(x, *self.there(self.centroids), shard=self.places)
        return Nearest(found.distance, self.classes(found.index))

    def closest(self, x: Tensor, count: int) -> Nearest:
        """The nearest centroids of each feature, nearest first, of equals the lower class.

        Args:
            x: (B, D).
            count: how many, fewer where fewer classes have a centroid.

        Returns:
            (distance (B, count) float32 or float64, class (B, count) int64).

        Raises:
            ValueError: features of another shape, or a count below 0.
        """
        check_features("CentroidMemory.closest", x, self.feat_dim)
        if count < 0:
            raise ValueError(f"CentroidMemory.closest: expected count of at least 0, got {count}")
        found: Nearest = self.layout.each(lambda rows: self._closest(rows, count), x)
        return found

    def _closest(self, x: Tensor, count: int) -> Nearest:
        (memory,) = self.there(self.centroids)
        value, index = closest_rows(x, memory, count)
        index = index if self.present is None else self.present[index]
        value, classes = self.layout.smallest(value, index, count)
        return Nearest(value.to(wide(x).dtype), classes)

    @torch.no_grad()
    def initialise(self, features: Tensor, target: Tensor) -> None:
        """Sets every centroid to the mean of its class; a class without features gets zeros, and
        takes no part until :meth:`update` sees it.

        Args:
            features: (N, D), any floating dtype.
            target: (N,) int64 in [0, C).

        Raises:
            ValueError: no feature, features of another shape or not finite, or other numbers of
                features and labels. TypeError: labels that are no integers. RuntimeError: a label
                out of range.
        """
        self.initialise_from([(features, target)], lambda x: x)

    @torch.no_grad()
    def initialise_from(
        self, loader: Iterable[tuple[Any, Tensor]], feature_fn: Callable[[Any], Tensor]
    ) -> None:
        """Sets the centroids to class means over a loader, in one pass and constant memory.

        Args:
            loader: gives (inputs, target) batches.
            feature_fn: maps inputs to features (B, D). Put the model in eval mode first: the
                memory should hold the features that training and testing will see.

        Raises:
            ValueError: the loader gave no features, or features of another shape or not finite; or
                centroids that are parametrized, pruned or streamed.
            TypeError, RuntimeError: as :meth:`initialise`.
        """
        check_own("CentroidMemory.initialise_from", self, "centroids")

        def checked() -> Iterator[tuple[Tensor, Tensor]]:
            for inputs, target in loader:
                features = feature_fn(inputs)
                self._check(features)
                yield features, target

        layout = self.layout
        means, counts = means_over(layout.batches(checked()), self.num_classes, layout)
        layout.raw(self.centroids).copy_(means)
        self._set_counts(counts)

    @torch.no_grad()
    def update(self, features: Tensor, target: Tensor, momentum: float = 0.9) -> None:
        """Moves the centroids of the classes present towards their batch mean.

        ``centroid <- momentum * centroid + (1 - momentum) * mean``; a class seen for the first
        time takes the mean itself. Waits for the device, to see that the features are finite.

        Raises:
            ValueError: momentum outside [0, 1], features of another shape or not finite, other
                numbers of features and labels, or centroids that are parametrized, pruned or
                streamed. TypeError: labels that are not int64. RuntimeError: a label out of range.
                The memory then stays as it is.
        """
        check_own("CentroidMemory.update", self, "centroids")
        if not 0 <= momentum <= 1:
            raise ValueError(f"CentroidMemory: expected momentum in [0, 1], got {momentum}")
        self._check(features)
        complete = self.present is None and self._complete
        with torch.no_grad():
            features, target = self.layout.rows(features, target)
        bank = self.layout.raw(self.centroids)
        x = features.to(torch.promote_types(features.dtype, bank.dtype))
        means, count = ops.class_means(wide(x), target, self.num_classes, shard=self.layout.shard)
        means, count = self.layout.means_of_replicas(means, count)
        # in float32 at least, and rounded once
        means, old = wide(means), wide(bank)
        moved = momentum * old + (1 - momentum) * means
        moved = torch.where((self._counted > 0).unsqueeze(1), moved, means)
        bank.copy_(torch.where((count > 0).unsqueeze(1), moved, old))
        self._counted.add_(count)
        if complete:  # and so it stays: no need to wait for the device
            self._found_of = mark_values(self._counted)
        else:
            self._find_present()

    def refresh(self) -> None:
        """Look again which classes have a centroid: the tensors are others."""
        self._find_present()

    def save(self, path: str | Path) -> None:
        """Writes centroids and counts as safetensors; of shards, `state_dict` is written by
        `torch.distributed.checkpoint`.

        Raises:
            ValueError: processes share the classes, or centroids are streamed.
        """
        self._check_whole("save")
        tensors = {"centroids": self.centroids.detach().contiguous(), "counts": self.counts}
        save_file(tensors, str(path))

    def load(self, path: str | Path) -> None:
        """Reads what :meth:`save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged, or holds a memory of another shape, processes share
                the classes, or centroids are streamed.
        """
        self._check_whole("load")
        if not Path(path).is_file():
            raise FileNotFoundError(f"CentroidMemory: no file {path}")
        try:
            tensors = load_file(str(path))
            centroids, counts = tensors["centroids"], tensors["counts"]
        except Exception as error:  # safetensors raises its own type, a missing name KeyError
            raise ValueError(f"CentroidMemory: {path} does not hold a memory: {error}") from None
        for name, own, found in (
            ("centroids", self.centroids, centroids),
            ("counts", self.counts, counts),
        ):
            if found.shape != own.shape:
                raise ValueError(
                    f"CentroidMemory: expected {name} of shape {tuple(own.shape)}, {path} holds "
                    f"{tuple(found.shape)}"
                )
        with torch.no_grad():
            self.centroids.copy_(centroids)
            self._set_counts(counts)

    def _check(self, features: Tensor) -> None:
        check_features("CentroidMemory", features, self.feat_dim)
        if not torch.isfinite(features).all():
            raise ValueError("CentroidMemory: expected finite features, got NaN or infinity")

    def _set_counts(self, counts: Tensor) -> None:
        self._counted.copy_(counts)
        self._find_present()

    def _check_whole(self, what: str) -> None:
        check_in_memory(f"CentroidMemory.{what}", self.centroids)
        if self.layout.shard is not None:
            raise ValueError(
                f"CentroidMemory.{what}: expected all classes here, got {self.layout.shard.size} "
                f"of {self.num_classes}: use state_dict with torch.distributed.checkpoint"
            )

    def sharded(self) -> None:
        self._find_present()

    def _find_present(self) -> None:
        self._complete, self._present, self._places = False, None, None
        self._found_of = mark_values(self._counted)
        if self.counts.is_meta:  # it is not known yet
            return
        with torch.inference_mode(False):  # of tensors made in that mode, backward saves none
            there = alike("CentroidMemory", "which classes have a centroid", self._counted > 0)
            present = there.nonzero()[:, 0]
        self._places = self.layout.places(len(present))
        number = len(present) if self._places is None else self._places.total
        self._complete = number == self.num_classes
        self._present = present if 0 < number < self.num_classes else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if self._present is not None:  # for compiled graphs, which do not look for it anew
            self._present = None if self.counts.is_meta else self._present.to(self._counted.device)
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._find_present()

    def extra_repr(self) -> str:
        learnable = isinstance(self.centroids, nn.Parameter)
        return f"num_classes={self.num_classes}, feat_dim={self.feat_dim}, learnable={learnable}"
