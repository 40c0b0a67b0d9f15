"""The demo: train methods on the embedded icons from scratch, judge them, say what is unknown."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from oltr_ext._tables import write_rows
from oltr_ext._version import __version__
from oltr_ext._words import counted
from oltr_ext.config.epochs import one_stage_alone
from oltr_ext.config.loading import load_config
from oltr_ext.config.methods import DEMO, METHODS
from oltr_ext.engine import checkpoint
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import OtherRunError, train
from oltr_ext.serve.assess import REPORT, Assessment, assess, report
from oltr_ext.serve.tables import table
from oltr_ext.serve.trained import load_trained

__all__ = ["demo"]


def demo(
    out: str | Path,
    *,
    methods: Sequence[str] = DEMO,
    seed: int = 0,
    fresh: bool = False,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[Assessment]:
    """Train and judge each method; finished runs in `out` are taken as they are.

    Writes `out`/<method>/ (the runs), report.html, report.json, demo.png and unknown.csv.

    Raises:
        ValueError: an unknown method. OtherRunError: a run on other data where one is to go.
    """
    out, begin = Path(out), time.perf_counter()
    chosen = [f"seed={seed}", *overrides]
    # all of them first: a wrong name is told before any training
    configs = [load_config("icons", chosen, method=name) for name in methods]
    results = []
    for name, config in zip(methods, configs, strict=True):
        say(f"{name}: {METHODS[name].changes} ({METHODS[name].paper})")
        if line := one_stage_alone(chosen, config):
            say(line)
        started = time.perf_counter()
        try:
            path = train(config, out / name, resume=not fresh, say=say)
        except OtherRunError as error:
            if _on_other_data(out / name):
                raise
            say(f"{error.args[0]}: starting afresh")
            path = train(config, out / name, resume=False, say=say)
        say(f"{name}: {time.perf_counter() - started:.0f} s")
        results.append(assess(load_trained(path, device=config.device), name=name))
    say(f"\n{table(results)}\n")
    last = results[-1]
    say(unknown(last))
    _write_unknown(last, out / "unknown.csv")
    data = load_splits(last.trained.config.data)
    files = report(
        results,
        out / REPORT,
        picture=out / "demo.png",
        details={
            "data": f"embedded icons: {counted(len(data.train), 'training image')} of "
            f"{counted(data.num_classes, 'known class')}, {len(data.test)} known and "
            f"{counted(sum(map(len, data.opened)), 'open test image')}",
            "seed": str(seed),
            "versions": f"oltr_ext {__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}",
        },
    )
    say(f"list    {out / 'unknown.csv'}")
    say(f"report  {files.html}")
    say(f"done in {time.perf_counter() - begin:.0f} s")
    return results


def _on_other_data(run: Path) -> bool:
    """Whether a folder holds somebody's run, and not one of the demo under other settings."""
    held = [run / name for name in (checkpoint.LAST, checkpoint.MODEL) if (run / name).exists()]
    return any(checkpoint.opened(f)[1]["config"]["data"]["kind"] != "icons" for f in held)


def unknown(result: Assessment) -> str:
    """Which test images a model holds for unknown, counted by their true names."""
    rejected, strangers = result.rejected, result.seen.target < 0
    lines = [f"Held for unknown by {result.name} ({result.trained.threshold['words']}):"]
    for words, part in (("strangers", strangers), ("known", ~strangers)):
        names = Counter(result.true_name(int(i)) for i in (rejected & part).nonzero()[0])
        listed = ", ".join(f"{name} {count}" for name, count in names.most_common())
        lines.append(f"  {names.total()} of {part.sum()} {words}: {listed or 'none'}")
    return "\n".join(lines)


def _write_unknown(result: Assessment, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        write_rows(file, [("image", "true_name", "open", "confidence", "closed_prediction")])
        write_rows(
            file,
            (
                (
                    result.image_id(i),
                    result.true_name(i),
                    int(result.seen.target[i] < 0),
                    f"{result.confidence[i]:.6g}",
                    result.class_names[int(result.seen.pred[i])],
                )
                for i in result.rejected.nonzero()[0].tolist()
            ),
        )
