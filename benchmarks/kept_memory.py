"""What it costs that glibc returns freed memory to the system at once, as Markdown.

    python benchmarks/kept_memory.py > benchmarks/results/kept_memory.md

Ops both ways, and training steps of a network on images and of a head over 100,000 classes, each in
two processes called in turn: as glibc is, and with MALLOC_MMAP_MAX_ and MALLOC_TRIM_THRESHOLD_ so
that the process keeps what it frees. Medians and, in brackets, the quickest; most memory at a time.
"""

from __future__ import annotations

import datetime
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import by_isa

KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}
COLUMNS: dict[str, dict[str, str]] = {"returned": {}, "kept": KEPT}
OPS = [
    ("memory_attention", "256x8142x512", "bfloat16"),
    ("memory_attention", "64x100000x512", "bfloat16"),
    ("memory_attention", "64x100000x512", "float32"),
    ("meta_embedding", "128x8142x2048", "bfloat16"),
    ("meta_embedding", "128x8142x2048", "float32"),
    ("cosine_cross_entropy", "64x100000x512", "bfloat16"),
]
STEPS = {
    "ResNet-18, 32 images of 224 pixels, float32": ("resnet", "float32"),
    "ResNet-18, 32 images of 224 pixels, bfloat16": ("resnet", "bfloat16"),
    "OLTR head, 100,000 classes, 64 rows of 512, float32": ("head", "float32"),
}
ROUNDS = 9


def resnet(dtype: str) -> Callable[[], None]:
    import torch
    import torchvision

    net = torchvision.models.resnet18(num_classes=100)
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    images, labels = torch.randn(32, 3, 224, 224), torch.randint(100, (32,))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = torch.nn.functional.cross_entropy(net(images), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    return step


def head(_: str) -> Callable[[], None]:
    import torch

    from oltr_ext.nn import OLTRHead

    bank = OLTRHead(512, 100_000)
    sgd = torch.optim.SGD(bank.parameters(), 0.1, momentum=0.9)
    features, labels = torch.randn(64, 512), torch.randint(100_000, (64,))

    def step() -> None:
        sgd.zero_grad()
        bank.loss(features, labels).backward()
        sgd.step()

    return step


def serve(what: str, dtype: str) -> None:
    """The process of one column: a line in, the seconds of a step out; at the end its memory."""
    step = {"resnet": resnet, "head": head}[what](dtype)
    for _ in range(3):
        step()
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        print(time.perf_counter() - begin, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def steps(what: str, dtype: str) -> list[str]:
    """Of each column: milliseconds of a step, and gigabytes at most."""
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--serve", what, dtype],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **variables, "OLTR_EXT_BACKEND": "native"},
        )
        for name, variables in COLUMNS.items()
    }  # fmt: skip
    found = by_isa.in_turn(workers, "step", ROUNDS)
    peaks = {name: float(worker.communicate()[0]) for name, worker in workers.items()}
    return [
        f"{statistics.median(ms):.4g} ({min(ms):.4g}); {peaks[name]:.2f} GB"
        for name, ms in found.items()
    ]


def main() -> None:
    from machine import machine

    facts = machine()
    print("# Memory that is freed: returned to the system, or kept\n")
    print((__doc__ or "").split("\n\n", 2)[2].strip(), end="\n\n")
    print(
        f"{facts['processor']}, family {facts['family']}, model {facts['model']}, "
        f"{facts['threads']} threads; torch {facts['torch']}, {' '.join(platform.libc_ver())}, "
        f"{datetime.date.today()}. Ops: forward / both ways, milliseconds.\n"
    )
    print(f"| | {' | '.join(COLUMNS)} |\n| --- | ---: | ---: |")
    for op, shape, dtype in OPS:
        cells = by_isa.times(op, shape, dtype, COLUMNS, ROUNDS)
        print(f"| {op}, {shape}, {dtype} | {' | '.join(cells.values())} |", flush=True)
    for name, (what, dtype) in STEPS.items():
        print(f"| {name} | {' | '.join(steps(what, dtype))} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    else:
        main()
