"""Stage 2 of OLTR on 18,000 classes: training steps on real images with the fused head, with the
best eager PyTorch, and with the released code's formulas.

    python benchmarks/tables/large_bank.py

After `oltr data make glyphs`. Each way and batch size takes its steps in a process of its own, from
the same trained stage 1, and may have the memory that is free when it starts. Writes
results/tables/large_bank.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from runs import trained
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from machine import machine
from peak_memory import ENVIRONMENT, available, status
from peers import PEERS

from oltr_ext import use_backend
from oltr_ext.config.loading import load_config
from oltr_ext.config.schema import Config, MemoryStage
from oltr_ext.engine import checkpoint
from oltr_ext.engine.build import build_model, build_optimizer, build_sampler
from oltr_ext.engine.checkpoint import MODEL
from oltr_ext.engine.handover import hand_over
from oltr_ext.engine.splits import load_splits, make_loader
from oltr_ext.nn import OLTRHead

RESULTS = Path(__file__).parent.parent / "results" / "tables"
TITLE = "Stage 2 of OLTR on 18,000 classes"
BATCHES = (64, 256, 1024)
WARM, STEPS = 2, 9
Loss = Callable[[OLTRHead, Tensor, Tensor], Tensor]


def of_peers(embedding: str, entropy: str, centroids: str) -> Loss:
    """The head's loss from peers of its three ops."""

    def loss(head: OLTRHead, x: Tensor, target: Tensor) -> Tensor:
        keys, gate = head.classifier.fc_hallucinator, head.classifier.fc_selector
        memory, weight = head.memory.centroids, head.classifier.cosnorm_classifier.weight
        v = PEERS["meta_embedding"][embedding].call(
            x, memory.detach(), keys.weight, keys.bias, gate.weight, gate.bias
        )
        entropy_of_v = PEERS["cosine_cross_entropy"][entropy].call(v, weight, target)
        pull = PEERS["disc_centroids_loss"][centroids].call(x, target, memory)
        return entropy_of_v + head.feature_loss_weight * pull

    return loss


def ours(head: OLTRHead, x: Tensor, target: Tensor) -> Tensor:
    head.centroid_loss.margin = 1e5  # that of the peers
    return head.loss(x, target)


def linear(head: OLTRHead, x: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(head.classifier.fc_hallucinator(x), target)


WAYS: dict[str, Loss] = {
    "oltr_ext": ours,
    "eager PyTorch": of_peers("eager addmm", "eager columns", "eager sums"),
    "released formulas": of_peers("released", "eager", "released"),
    "linear classifier": linear,
}


def configured(batch: int = BATCHES[0]) -> Config:
    return load_config("glyphs-18000", [f"stage2.batch_size={batch}"], method="oltr")


def start(runs: Path) -> Path:
    """Stage 2 as it begins, behind the stage 1 that the table of this set trains too."""
    config = configured()
    file = runs / "large_bank_start.safetensors"
    if not file.exists():
        first = config.model_copy(update={"stage2": None, "amp": "bf16"})
        tensors, _ = checkpoint.load(trained(first, runs)[0] / MODEL)
        splits = load_splits(config.data)
        old, new = build_model(config, 1, splits), build_model(config, 2, splits)
        old.load_state_dict(checkpoint.under("model.", tensors))
        assert config.stage2 is not None
        hand_over(old, new, config.stage2, splits, torch.device("cpu"))
        checkpoint.save(file, dict(new.state_dict()), {})
    return file


def steps(way: str, batch: int, begin: Path) -> dict[str, Any]:
    """Median milliseconds of a step and of the head in it, the head's peak bytes, the losses."""
    config = configured(batch)
    stage, splits = config.stage2, load_splits(config.data)
    assert isinstance(stage, MemoryStage)
    torch.manual_seed(0)
    model = build_model(config, 2, splits).train()
    model.load_state_dict(checkpoint.load(begin)[0])
    head = model.head
    assert isinstance(head, OLTRHead)
    optimizer = build_optimizer(model, stage)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"]
    sampler = build_sampler(stage, splits.train.labels, 0)
    batches = make_loader(splits.train, sampler.batches(batch, WARM + STEPS), 0)
    whole, inside, peaks, losses = [], [], [], []
    for images, target in islice(batches, WARM + STEPS):
        clock = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        features = model.features(images.to(memory_format=torch.channels_last))
        x = features.detach().requires_grad_()
        Path("/proc/self/clear_refs").write_text("5")
        before, head_clock = status("VmRSS"), time.perf_counter()
        loss = WAYS[way](head, x, target)
        loss.backward()
        inside.append(time.perf_counter() - head_clock)
        peaks.append(status("VmHWM") - before)
        features.backward(x.grad)
        optimizer.step()
        whole.append(time.perf_counter() - clock)
        losses.append(float(loss.detach()))
    return {
        "step_ms": 1e3 * median(whole[WARM:]),
        "head_ms": 1e3 * median(inside[WARM:]),
        "peak_bytes": max(peaks[WARM:]),
        "losses": losses,
    }


def in_own_process(way: str, batch: int, begin: Path) -> dict[str, Any]:
    """`steps`, or why there is no result."""
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, "--batch", str(batch), "--start", str(begin)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    return {"failed": (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]}


def markdown(results: dict[str, Any]) -> str:
    about = results["about"]
    lines = [
        f"# {TITLE}",
        "",
        "A step: images to features (`small_cnn`, attention), the head's loss, its gradients, SGD. "
        f"D = 256, float32, {about['threads']} threads of {about['processor']}; medians of {STEPS} "
        "steps. Peak: resident memory of the head's forward and backward over that before them, "
        "their gradients included. Loss: largest relative difference to oltr_ext over all steps.",
        "",
        "| batch | way | head, ms | whole step, ms | head's peak, MB | loss |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    for batch, ways in results["steps"].items():
        own = torch.tensor(ways["oltr_ext"]["losses"], dtype=torch.float64)
        for way, found in ways.items():
            if "failed" in found:
                asked = re.search(r"allocate (\d+) bytes", found["failed"])
                why = f"{int(asked[1]) / 1e9:.0f} GB for one tensor" if asked else found["failed"]
                lines.append(f"| {batch} | {way} | dies: {why} | | | |")
                continue
            apart = (torch.tensor(found["losses"], dtype=torch.float64) / own - 1).abs().max()
            loss = "" if way in ("oltr_ext", "linear classifier") else f"{float(apart):.0e}"
            lines.append(
                f"| {batch} | {way} | {found['head_ms']:.0f} | {found['step_ms']:.0f} "
                f"| {found['peak_bytes'] / 1e6:.0f} | {loss} |"
            )
    lines += ["", f"`python benchmarks/tables/large_bank.py`, {about['date']}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=TITLE)
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way is not None:
        # what is too much is then an error here and not the end of another process
        resource.setrlimit(resource.RLIMIT_DATA, (available(), available()))
        print(json.dumps(steps(args.way, args.batch, args.start)))
        return
    begin = start(args.runs)
    found: dict[str, Any] = {}
    for batch in BATCHES:
        found[str(batch)] = {way: in_own_process(way, batch, begin) for way in WAYS}
        print(
            batch,
            {
                w: {k: v for k, v in r.items() if k != "losses"}
                for w, r in found[str(batch)].items()
            },
        )
    results = {"about": machine(), "steps": found}
    (RESULTS / "large_bank.json").write_text(json.dumps(results) + "\n")
    (RESULTS / "large_bank.md").write_text(markdown(results))


if __name__ == "__main__":
    with use_backend("native"):
        main()
