"""Where a layer's classes are: all in this process, or some of them, the others in other processes.

Layers ask their `layout` for tensors and rows and hand its `shard` to the ops; of a layer that is
whole, every answer is what was given. `shard_classes` gives layers another one.

The mean over processes of what each differentiates is the loss of all rows, as it is under
DistributedDataParallel. So the gradient that gathered rows take back carries the number of the
processes that share them; that of a class stays where the class is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from oltr_ext.nn.gathering import Gathered, MeanGradient, Mine, Whole, cross_entropy, gather_rows
from oltr_ext.nn.parted import weakest_of
from oltr_ext.ops._compile import untraced
from oltr_ext.ops.shard import Shard, enter, summed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Rows = tuple[Tensor, Tensor]
Start = Callable[[Tensor, int], Any]
"""Draws rows (N, ...) of a class tensor, in place, for features of a width."""
_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


class Layout:
    """All classes are here."""

    shard: Shard | None = None

    def bounds(self, total: int) -> tuple[int, int]:
        """First of this process's classes, and the one after its last."""
        return (0, total) if self.shard is None else (self.shard.start, self.shard.stop)

    def most(self, total: int) -> int:
        """Of so many classes the most that a process has."""
        return total

    def own(self, tensor: Tensor) -> Tensor:
        """Rows of this process's classes, of a tensor (C, ...) of the layer."""
        return tensor

    def raw(self, tensor: Tensor) -> Tensor:
        """As `own`, without gradient: to be read or written in place."""
        return tensor

    def cut(self, tensor: Tensor) -> Tensor:
        """As `raw`, of a tensor that may be whole."""
        return tensor

    def alike(self, tensor: Tensor) -> Tensor:
        """A parameter that every process has."""
        return tensor

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """Logits of this process's classes."""
        logits: Tensor = layer(x)
        return logits

    def criterion(
        self, criterion: nn.Module, columns: Tensor, target: Tensor, log_prior: Tensor | None = None
    ) -> Tensor:
        """A loss of logits (B, C) plus the logarithm of a prior (C,), of which these are of this
        process's classes."""
        # smoothed by torch, a class that is impossible would make it infinite
        if log_prior is not None and is_plain(criterion) and criterion.label_smoothing:
            return cross_entropy(criterion, columns, target, log_prior, self.shard)
        loss: Tensor = criterion(columns if log_prior is None else columns + log_prior, target)
        return loss

    def zero_of(self, weight: Tensor, bias: Tensor) -> Tensor:
        """(D,) float64, the feature at which a linear layer is nearest to 0."""
        return -(torch.linalg.pinv(weight.cpu().double()) @ bias.cpu().double())

    def whole(self, columns: Tensor) -> Tensor:
        """(B, C) of logits of this process's classes."""
        return columns

    def rows(self, features: Tensor, target: Tensor) -> Rows:
        """Features (B, D) and labels (B,) of all processes that share the classes."""
        return features, target

    def each(self, function: Callable[[Tensor], Any], features: Tensor) -> Any:
        """What a function of gathered rows gives for the rows of this process: a tuple of tensors
        (B, ...) and None."""
        return function(features)

    def batches(self, batches: Iterable[Rows]) -> Iterator[Rows]:
        """As `rows`, for processes that may have different numbers of batches."""
        yield from batches

    def sums_of_replicas(self, sums: Tensor, counts: Tensor) -> Rows:
        """Sums (N, D), or none at all, and counts (N,) over all processes with the same classes."""
        return sums, counts

    def means_of_replicas(self, means: Tensor, counts: Tensor) -> Rows:
        """As `sums_of_replicas`, of means."""
        return means, counts

    def places(self, number: int) -> Shard | None:
        """The shard of this process among all processes' classes of a kind, of which it has so
        many; None where there is none at all."""
        return None

    def smallest(self, value: Tensor, classes: Tensor, count: int) -> Rows:
        """The smallest of values (B, N), smallest first, and their classes (B, N), of all."""
        return value, classes

    @contextmanager
    def same_rows(self) -> Iterator[None]:
        """For its length, processes that share the classes are given the same rows."""
        yield


WHOLE = Layout()


class Sharded(Layout):
    """A shard of the classes.

    Args:
        total: C.
        mesh: 1-D, of the processes that share the classes.
        replicas: the processes with the same classes; None where this is the only one.
        gathers: whether the processes that share the classes have rows of their own.
    """

    shard: Shard

    def __init__(
        self, total: int, mesh: DeviceMesh, replicas: dist.ProcessGroup | None, gathers: bool
    ) -> None:
        self.shard = Shard.of(total, mesh.get_group())
        self.mesh, self.replicas, self.gathers = mesh, replicas, gathers
        self._device = torch.device(mesh.device_type)

    def __deepcopy__(self, memo: Any) -> Sharded:
        return self  # a process group has no copies

    def most(self, total: int) -> int:
        return Shard.cut(total, dist.get_world_size(self.shard.group), 0)[1]

    def own(self, tensor: Tensor) -> Tensor:
        local: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return self.alike(local)

    def raw(self, tensor: Tensor) -> Tensor:
        local: Tensor = tensor._local_tensor  # type: ignore[attr-defined]  # the same at each call
        return local

    def cut(self, tensor: Tensor) -> Tensor:
        if is_dtensor(tensor):
            return self.raw(tensor)
        return tensor.detach()[self.shard.start : self.shard.stop]

    def alike(self, tensor: Tensor) -> Tensor:
        if self.replicas is None or not tensor.requires_grad:
            return tensor
        shared: Tensor = MeanGradient.apply(tensor, self.replicas)
        return shared

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        weight, bias = self.own(layer.weight), self.own(layer.bias)
        return nn.functional.linear(enter(self.shard, x), weight, bias)

    def criterion(
        self, criterion: nn.Module, columns: Tensor, target: Tensor, log_prior: Tensor | None = None
    ) -> Tensor:
        if is_plain(criterion):
            return cross_entropy(criterion, columns, target, log_prior, self.shard)
        logits = self.whole(columns if log_prior is None else columns + log_prior)
        loss: Tensor = criterion(logits, target)
        return loss

    def zero_of(self, weight: Tensor, bias: Tensor) -> Tensor:
        wide = weight.double()
        both = summed(self.shard, torch.cat([wide.t() @ wide, (bias.double() @ wide)[None]])).cpu()
        return -(torch.linalg.pinv(both[:-1], hermitian=True) @ both[-1])

    def whole(self, columns: Tensor) -> Tensor:
        whole: Tensor = Whole.apply(columns, self.shard)
        return whole

    def rows(self, features: Tensor, target: Tensor) -> Rows:
        if not self.gathers:
            return features, target
        x, sizes = self._gathered(features)
        return x, gather_rows(target, sizes, self.shard)

    def each(self, function: Callable[[Tensor], Any], features: Tensor) -> Any:
        if not self.gathers:
            return function(features)
        x, sizes = self._gathered(features)
        with self.same_rows():
            found = function(x)
        own = (None if t is None else Mine.apply(t, sizes, self.shard) for t in found)
        return type(found)(*own) if hasattr(found, "_fields") else tuple(own)

    def batches(self, batches: Iterable[Rows]) -> Iterator[Rows]:
        if not self.gathers:
            yield from batches
            return
        source, like = iter(batches), None
        while True:
            batch = next(source, None)
            like = batch if batch is not None else like
            device = self._device if like is None else like[0].device
            # who never had a batch learns from the others what features are
            facts = [-1, 0, 0]
            if like is not None:
                rows = -1 if batch is None else len(batch[0])
                facts = [rows, like[0].shape[1], _DTYPES.index(like[0].dtype)]
            every = self._every(facts, device)
            if max(rows for rows, _, _ in every) < 0:
                return
            sizes = [max(0, rows) for rows, _, _ in every]
            width, kind = (max(fact[i] for fact in every) for i in (1, 2))
            x, y = torch.empty(0, width, device=device), torch.empty(0, device=device)
            x, y = (x, y) if batch is None else batch
            x, y = x.detach().to(_DTYPES[kind]), y.to(device, torch.int64)
            yield gather_rows(x, sizes, self.shard), gather_rows(y, sizes, self.shard)

    def sums_of_replicas(self, sums: Tensor, counts: Tensor) -> Rows:
        if self.replicas is None:
            return sums, counts
        device = self._device
        width = torch.tensor(sums.shape[1] if sums.dim() > 1 else 0, device=device)
        dist.all_reduce(width, dist.ReduceOp.MAX, self.replicas)
        if sums.dim() == 1 and width > 0:
            sums = counts.new_zeros(len(counts), int(width), dtype=torch.float64)
        found = []
        for tensor in (sums, counts):
            sent = tensor.to(device)
            dist.all_reduce(sent, group=self.replicas)
            found.append(sent.to(tensor.device))
        return found[0], found[1]

    def means_of_replicas(self, means: Tensor, counts: Tensor) -> Rows:
        if self.replicas is None:
            return means, counts
        sums, total = self.sums_of_replicas(means.double() * counts[:, None], counts)
        return (sums / total.clamp_min(1)[:, None]).to(means.dtype), total

    def places(self, number: int) -> Shard | None:
        numbers = [found for (found,) in self._every([number], self._device)]
        start = sum(numbers[: self.mesh.get_local_rank()])
        total = sum(numbers)
        return Shard(start, start + number, total, self.shard.group) if total else None

    def smallest(self, value: Tensor, classes: Tensor, count: int) -> Rows:
        short = min(count, self.shard.total) - value.shape[1]
        value = nn.functional.pad(value, (0, short), value=torch.inf)
        classes = nn.functional.pad(classes + self.shard.start, (0, short))
        sizes = [value.shape[1]] * dist.get_world_size(self.shard.group)
        value, classes = (gather_rows(t.t(), sizes, self.shard).t() for t in (value, classes))
        found, which = weakest_of(value, count)
        there = found.isfinite().any(dim=0)  # fewer may have a centroid
        return found[:, there], classes.gather(1, which)[:, there]

    @contextmanager
    def same_rows(self) -> Iterator[None]:
        before, self.gathers = self.gathers, False
        try:
            yield
        finally:
            self.gathers = before

    def _gathered(self, features: Tensor) -> tuple[Tensor, list[int]]:
        """Rows of all, and how many are whose."""
        trained = features.requires_grad and torch.is_grad_enabled()
        every = self._every([len(features), int(trained)], features.device)
        if not trained and any(flag for _, flag in every):
            features = features.detach().requires_grad_()  # whose graph has the same collectives
        sizes = [rows for rows, _ in every]
        return Gathered.apply(features, sizes, self.shard), sizes

    @untraced  # numbers are read: it waits for the device
    def _every(self, numbers: list[int], device: torch.device) -> list[list[int]]:
        """What each process has to say."""
        own = torch.tensor(numbers, device=device)
        every = [torch.empty_like(own) for _ in range(dist.get_world_size(self.shard.group))]
        dist.all_gather(every, own, group=self.shard.group)
        return torch.stack(every).tolist()


def is_plain(criterion: nn.Module) -> TypeGuard[nn.CrossEntropyLoss]:
    """Whether a loss is torch's cross-entropy, all classes weighing alike."""
    return type(criterion) is nn.CrossEntropyLoss and criterion.weight is None


def kaiming(rows: Tensor, width: int) -> None:
    """As `torch.nn.Linear` draws its weight."""
    nn.init.kaiming_uniform_(rows, a=math.sqrt(5))


def uniform(rows: Tensor, width: int) -> None:
    """In +-1 / sqrt(D), as `torch.nn.Linear` draws its bias."""
    bound = 1 / math.sqrt(width)
    nn.init.uniform_(rows, -bound, bound)


class ClassRows(nn.Module):
    """A layer with tensors that have a row a class, which processes may share.

    Attributes:
        CLASS_TENSORS: their names, and what they are at first: a number, what draws a piece of
            them, or None where that is not known here.
        UNSHARDED: why its classes cannot be shared.
        layout: where they are.
    """

    CLASS_TENSORS: ClassVar[dict[str, float | Start | None]] = {}
    UNSHARDED: ClassVar[str] = ""

    layout: Layout = WHOLE

    def sharded(self) -> None:
        """Called once its classes are shared."""

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        """Of a whole tensor, a shard takes its rows."""
        if isinstance(self.layout, Sharded):
            for name in self.CLASS_TENSORS:
                value = state.get(prefix + name)
                if value is None or is_dtensor(value):
                    continue
                total = self.layout.shard.total
                if len(value) != total:
                    raise ValueError(
                        f"{type(self).__name__}.load_state_dict: expected {prefix}{name} of "
                        f"{total} classes, got {len(value)}: classes that are shared by processes "
                        "do not change their number"
                    )
                state[prefix + name] = as_shard(self.layout.cut(value), self.layout)
        super()._load_from_state_dict(state, prefix, *args)


def as_shard(local: Tensor, layout: Sharded) -> Tensor:
    """The DTensor (C, ...) of which this process has these rows."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor import Shard as Cut

    shape = torch.Size([layout.shard.total, *local.shape[1:]])
    stride = torch.empty(shape, device="meta").stride()  # of the whole: rows may be fewer here
    return DTensor.from_local(
        local.contiguous(), layout.mesh, [Cut(0)], run_check=False, shape=shape, stride=stride
    )


def is_dtensor(tensor: Any) -> bool:
    """Without an import of DTensor, which costs every process a second."""
    return hasattr(tensor, "_local_tensor")
