"""One run over several processes, one a device, as torchrun starts them.

W processes give what one gives, within rounding: a batch is the configured one, and each process
takes its share of the rows. What couples the rows of a batch sees all of them:

- Terms of a loss that decompose over rows stay on their process, however large the bank. For the
  others (pairs, a clamped mean, an episode) features and labels are gathered, B x D numbers, and
  every process computes the whole term: less to send and to go wrong than sums for each loss.
- BatchNorm takes its statistics over all processes: `oltr_ext.engine.batchnorm`.

Each process differentiates its own loss; the mean of these over processes is the batch's loss.
So a gradient that crosses processes carries a factor W until `average` takes the mean.

Gradients are averaged here and not by DistributedDataParallel: that regroups its buckets after the
first step, so a resumed run of three processes or more would add in another order, to other bits.
Classes that processes share (`oltr_ext.engine.class_shards`) have their gradients already.
Evaluation shares the batches (`oltr_ext.engine.evaluate.stream`). Process 0 alone writes files.

Collectives on tensors of the device go through NCCL on CUDA, on tensors of the CPU through gloo.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from oltr_ext._words import counted
from oltr_ext.engine.attendance import Attendance, in_collective
from oltr_ext.engine.build import pick_device

__all__ = [
    "all_gather",
    "average",
    "barrier",
    "device_of",
    "gather",
    "joined",
    "lead",
    "lead_first",
    "mean",
    "rank",
    "same_start",
    "share",
    "unite",
    "world",
]

BUCKET = 1 << 23
"""Numbers in one all-reduce of gradients; a larger tensor goes alone."""


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if world() > 1 else 0


def lead() -> bool:
    """Whether this process writes: checkpoints, logs, what the user reads."""
    return rank() == 0


@contextmanager
def joined(timeout: float = 600) -> Iterator[None]:
    """Join the processes that torchrun started, if it did, for the length of the block.

    The first of them to fail tells its error, and which it is, or whom it missed: one that was
    killed, went silent, or does not come. The others, which it may have stopped, exit silently.

    Args:
        timeout: seconds for which a process waits for the others.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield
        return
    store, number, processes = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    attendance = Attendance(store, number, processes, timeout)
    try:
        with _told_to_end():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                store=store,
                rank=number,
                world_size=processes,
                timeout=timedelta(seconds=timeout),
            )
            yield
    except (Exception, KeyboardInterrupt, _Terminated) as error:
        if not attendance.first_to_fail():
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from error
        own = f"process {number} of {processes}"
        try:
            missing = None
            # torchrun ends, with a lost process, the workers of the others' loaders too
            if isinstance(error, (RuntimeError, _Terminated)):
                missing = attendance.missing(error, wait=in_collective(error))
            if missing:
                words = str(error).splitlines() or [type(error).__name__]
                raise LostProcess(f"{missing}: process {number} missed it ({words[0]})") from error
        finally:
            attendance.told()
        if isinstance(error, _Terminated):
            raise LostProcess(f"{own}: {error}") from error
        if len(error.args) == 1 and isinstance(error.args[0], str):
            error.args = (f"{own}: {error.args[0]}",)
        raise
    attendance.close()
    dist.destroy_process_group()  # not after an error: others may wait in a collective


class LostProcess(RuntimeError):
    """A process of several is no more."""


class _Terminated(BaseException):
    """By SIGTERM, which torchrun sends to the others of a machine when one of them is lost."""


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Who is asked to end says why, and is not asked twice."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise _Terminated("ended by SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    signal.signal(signal.SIGTERM, before)


def device_of(name: str) -> torch.device:
    """The device of this process, by the name in the configuration.

    Raises:
        ValueError: no such device, one device for several processes, or more processes than GPUs.
    """
    device = pick_device(name)
    if world() == 1 or device.type != "cuda":
        return device
    local, gpus = int(os.environ.get("LOCAL_RANK", rank())), torch.cuda.device_count()
    if device.index is not None:
        raise ValueError(
            f"device: {name} is one GPU for {counted(world(), 'process')}; expected cuda"
        )
    if local >= gpus:
        raise ValueError(f"process {local} of this machine has no GPU of its own: there are {gpus}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.all_reduce(torch.zeros(1))


@contextmanager
def lead_first() -> Iterator[None]:
    """The block runs in process 0, then in the others."""
    if not lead():
        barrier()
    yield
    if lead():
        barrier()


def share(batches: Iterable[NDArray[np.int64]], parts: int = 1) -> Iterator[NDArray[np.int64]]:
    """This process's rows of each of the `parts` of each batch, in order.

    A batch (B, ...) gives `parts` arrays (B / parts / W, ...); B must divide.
    """
    for batch in batches:
        yield from batch.reshape(parts, world(), -1, *batch.shape[1:])[:, rank()]


def all_gather(value: Tensor) -> Tensor:
    """(W, ...) of every process's `value` (...), which have one shape; without gradient."""
    value = value.detach().contiguous()
    if world() == 1:
        return value[None]
    parts = [torch.empty_like(value) for _ in range(world())]
    dist.all_gather(parts, value)
    return torch.stack(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return all_gather(value).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # every process computes the same of the gathered rows: the sum of W equal gradients
        return grads[0].chunk(world())[rank()] * world()


def gather(features: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (b, D) and labels (b,) of this process to those of the whole batch (b W, D), (b W,).

    The rows come in the order of the batch. Gradients flow back to their process.
    """
    if world() == 1:
        return features, target
    whole: Tensor = _Gather.apply(features)
    return whole, all_gather(target).flatten(0, 1)


def mean(value: Tensor) -> float:
    """Mean over processes of a scalar; not finite in all as soon as it is in one."""
    if world() > 1:
        value = value.detach().clone()
        dist.all_reduce(value)
        value /= world()
    return float(value.item())


@torch.no_grad()
def average(gradients: Sequence[Tensor]) -> None:
    """Replace gradients by their mean over processes, to the same bits in all of them.

    Always in the same buckets, so a resumed run adds in the same order.
    """
    if world() == 1:
        return
    for bucket in _buckets(gradients):
        flat = torch.cat([g.reshape(-1) for g in bucket])
        dist.all_reduce(flat)
        flat /= world()
        for g, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            g.copy_(part.view_as(g))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in [*bucket, tensor]) > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@torch.no_grad()
def same_start(tensors: Iterable[Tensor]) -> None:
    """Give every process the tensors of process 0."""
    if world() > 1:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, 0)
            tensor.copy_(whole)


def unite(flags: Tensor) -> None:
    """Flags (N,) bool on the CPU become those set in any process."""
    if world() > 1:
        counts = flags.to(torch.uint8)
        dist.all_reduce(counts, dist.ReduceOp.MAX)
        flags |= counts.bool()
