"""What a result depends on besides the code: processor, threads, versions."""

from __future__ import annotations

import datetime
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from oltr_ext import __version__

FLAGS = (
    "avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16",
)  # fmt: skip


def _processor() -> dict[str, str]:
    """The first block of /proc/cpuinfo; what the platform says where there is none."""
    path = Path("/proc/cpuinfo")
    text = path.read_text().split("\n\n")[0] if path.exists() else ""
    found = dict(re.findall(r"^([^\t:]+?)\s*: (.*)$", text, re.MULTILINE))
    return {"model name": platform.processor() or platform.machine(), **found}


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", text.lower())).strip("-")


def machine() -> dict[str, Any]:
    """Facts about this machine and process; ``slug`` names the folder of its results.

    Clouds shorten the model name, so family and model number are part of the slug: two generations
    can share a name.
    """
    cpu, threads = _processor(), torch.get_num_threads()
    model, family = cpu["model name"], cpu.get("cpu family", "")
    number = f" family {family} model {cpu.get('model', '')}" if family else ""
    flags = cpu.get("flags", cpu.get("Features", "")).split()
    try:
        from oltr_ext import _C

        isa = str(dict(_C.cpu_features()).get("isa", "unknown"))
    except ImportError:
        isa = "unknown"
    return {
        "slug": _slug(f"{model}{number} {threads} threads"),
        "processor": model,
        "family": family,
        "model": cpu.get("model", ""),
        "flags": [f for f in FLAGS if f in flags],
        "kernels": isa,
        "threads": threads,
        "freed_memory": "kept" if os.environ.get("MALLOC_MMAP_MAX_") == "0" else "returned",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "oltr_ext": __version__,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _busy() -> float:
    """CPU seconds that all processes, and a hypervisor's other guests, have taken so far."""
    path = Path("/proc/stat")
    if not path.exists():
        return time.process_time()
    # user nice system idle iowait irq softirq steal
    ticks = [int(n) for n in path.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def watch_others() -> Callable[[], float]:
    """Starts watching; the function it returns tells what share of the processors others took.

    A stranger on one core can cost a team of spinning OpenMP threads a hundredfold, and not every
    peer alike: rows measured beside one must be known.
    """
    start, busy, own = time.perf_counter(), _busy(), time.process_time()

    def share() -> float:
        others = (_busy() - busy) - (time.process_time() - own)
        return max(0.0, others / (time.perf_counter() - start) / (os.cpu_count() or 1))

    return share
