"""What runs beside the computing: reads of the blocks to come, and copies to a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import torch
from torch import Tensor


def read_ahead(
    number: int,
    fill: Callable[[int, Tensor], Tensor],
    buffers: Sequence[Tensor],
    device: torch.device,
    stack: ExitStack,
) -> Iterator[Tensor]:
    """What `fill` gives for blocks 0 to `number`, in order, filled by a thread while earlier ones
    are used. One buffer is in use, the others are filled ahead.

    Args:
        stack: waits for the thread when it ends, however the pass ended.
    """
    if number == 0:
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="oltr-bank")
    stack.callback(pool.shutdown, cancel_futures=True)
    # a GPU may still copy from a buffer that its user has left
    copied: list[torch.cuda.Event | None] = [None] * len(buffers)

    def block(n: int) -> Tensor:
        event = copied[n % len(buffers)]
        if event is not None:
            event.synchronize()
        return fill(n, buffers[n % len(buffers)])

    coming: deque[Future[Tensor]] = deque(
        pool.submit(block, n) for n in range(min(number, len(buffers) - 1))
    )
    for n in range(number):
        ahead = n + len(buffers) - 1
        if ahead < number:
            coming.append(pool.submit(block, ahead))
        yield coming.popleft().result()
        if device.type == "cuda":
            event = torch.cuda.Event()
            event.record(_copying(device))
            copied[n % len(buffers)] = event


def on_device(
    blocks: Iterator[tuple[int, Tensor]], device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    """Blocks where they are wanted. To a GPU each is copied, on a stream of its own, while the one
    before is worked on, into one of two buffers."""
    if device.type != "cuda":
        yield from blocks
        return
    copying, buffers = _copying(device), [torch.empty(0), torch.empty(0)]
    free: list[torch.cuda.Event | None] = [None, None]
    before: tuple[int, Tensor, torch.cuda.Event, int] | None = None

    def ready(entry: tuple[int, Tensor, torch.cuda.Event, int]) -> tuple[int, Tensor]:
        torch.cuda.current_stream(device).wait_event(entry[2])
        return entry[0], entry[1]

    def left(entry: tuple[int, Tensor, torch.cuda.Event, int]) -> None:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(device))
        free[entry[3]] = event

    for n, (start, part) in enumerate(blocks):
        at = n % 2
        if buffers[at].numel() < part.numel() or buffers[at].dtype != part.dtype:
            buffers[at] = torch.empty(part.numel(), dtype=part.dtype, device=device)
            # its memory may have been another's, on the stream that computes
            copying.wait_stream(torch.cuda.current_stream(device))
        event = free[at]
        with torch.cuda.stream(copying):
            if event is not None:
                copying.wait_event(event)
            moved = buffers[at][: part.numel()].view(part.shape)
            moved.copy_(part, non_blocking=True)
            done = torch.cuda.Event()
            done.record(copying)
        if before is not None:
            yield ready(before)
            left(before)
        before = start, moved, done, at
    if before is not None:
        yield ready(before)


_STREAMS: dict[torch.device, torch.cuda.Stream] = {}


def _copying(device: torch.device) -> torch.cuda.Stream:
    return _STREAMS.setdefault(device, torch.cuda.Stream(device))
