"""The results of one machine as a page of Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]

NO_SHARES = ("overhead", "scaling", "training_step")
"""Suites without a bar in the figure of shares."""

BUSY = 0.05
"""A row measured while others took a larger share of the processors is marked."""

CAPTIONS = {
    "time_classes.png": "Time against the number of classes",
    "time_rows.png": "Time against the number of rows",
    "memory_classes.png": "Peak memory over inputs, outputs and gradients",
    "training_step.png": "One training step",
    "share_of_peak.png": "Share of the peak measured in the same rounds",
}


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The suites of a machine by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def sweep(records: list[Record], fixed: str) -> list[Record]:
    """The records that share the most frequent value of one dimension."""
    counts = Counter(r[fixed] for r in records)
    value = counts.most_common(1)[0][0] if counts else None
    return [r for r in records if r[fixed] == value]


def dtype(record: Record) -> str:
    """The dtype as a reader knows it."""
    kind = str(record["dtype"])
    return kind if kind in ("float32", "bfloat16") else f"float32, {kind}"


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _memory(record: Record, name: str | None) -> str:
    size = record.get("memory", {}).get(name)
    return "" if size is None else f"{max(size, 0) / 1e6:.0f}"


def _peers(record: Record, unit: float) -> str:
    """Every peer, fastest first, and those that could not run."""
    timed = sorted(record["peers"].items(), key=lambda item: item[1]["median_s"])
    ran = [
        f"{name} {number(one['median_s'] * unit)}" + ("*" if one["rounds"] == 1 else "")
        for name, one in timed
    ]
    missing = [f"{name}: {why}" for name, why in record.get("unavailable", {}).items()]
    return "; ".join([*ran, *missing])


def _eager(record: Record) -> str | None:
    """The best peer, by the name of the formula that was compiled."""
    best = record["best_peer"]
    if best is None or not best.startswith("compiled"):
        return best
    return f"eager {best.removeprefix('compiled').strip()}".strip()


def _best(record: Record, unit: float) -> str:
    best = record["best_peer"]
    return f"{best} {number(record['peers'][best]['median_s'] * unit)}" if best else ""


def _ours(record: Record, unit: float) -> str:
    ours = record["ours"]
    mark = " †" if record["others_cpu"] > BUSY else ""
    return f"{number(ours['median_s'] * unit)} ± {number(ours['iqr_s'] * unit / 2)}{mark}"


def _error(record: Record, name: str | None) -> str:
    wrong = record.get("errors", {}).get(name)
    return "" if wrong is None else number(wrong)


def _columns(suite: str, unit: float) -> dict[str, Callable[[Record], str]]:
    """Heads and cells of a suite's table; times in units of 1/unit seconds."""
    text = "µs" if unit == 1e6 else "ms"
    memory_bound = {True: " mem", False: ""}
    columns: dict[str, Callable[[Record], str]] = {
        "op": lambda r: r["op"],
        "BxCxD": lambda r: "x".join(str(r[k]) for k in "BCD"),
        "mode": lambda r: r["mode"],
        "dtype": dtype,
        f"ours {text}": lambda r: _ours(r, unit),
        f"best peer {text}": lambda r: _best(r, unit),
        "ratio": lambda r: f"{r['ratio']:.2f}" if r["best_peer"] else "",
        "share of peak": lambda r: (
            f"{100 * r['share_of_floor']:.0f} %" + memory_bound[r["bound"] == "memory"]
        ),
        f"floor {text}": lambda r: number(r["floor_s"] * unit),
        "ours ulp": lambda r: _error(r, ""),
        "best peer ulp": lambda r: _error(r, _eager(r)),
        "ours MB": lambda r: _memory(r, ""),
        "best peer MB": lambda r: _memory(r, r["best_peer"]),
        f"all {text}": lambda r: _peers(r, unit),
    }
    left_out: tuple[str, ...] = ()
    unmeasured = ("ours ulp", "best peer ulp", "ours MB", "best peer MB")
    if suite == "overhead":
        left_out = ("mode", "dtype", "share of peak", f"floor {text}", *unmeasured)
    if suite == "training_step":
        left_out = ("op", "mode", *unmeasured)
        columns["ours / baseline"] = lambda r: "; ".join(
            f"{name} {value:.2f}" for name, value in r["baselines"].items()
        )
    return {head: cell for head, cell in columns.items() if head not in left_out}


def _ceilings(records: list[Record]) -> str:
    """The range of what the bare loops reached over a suite."""
    parts = []
    for key, label, unit in (
        ("fp32_gflops", "float32", "GFLOP/s"),
        ("bf16_gflops", "bfloat16", "GFLOP/s"),
        ("read_gbytes", "reading", "GB/s"),
    ):
        rates = [r["ceilings"][key] for r in records]
        if rates and max(rates) > 0:
            parts.append(f"{label} {min(rates):.0f} to {max(rates):.0f} {unit}")
    return ", ".join(parts)


def commit_name(commit: dict[str, Any]) -> str:
    return commit["id"][:12] + (" with changes" if commit["dirty"] else "")


def _suite(name: str, suite: dict[str, Any]) -> list[str]:
    records = suite["records"]
    columns = _columns(name, 1e6 if name == "overhead" else 1e3)
    texts = ("op", "mode", "dtype")
    rules = ["---" if h in texts or h.startswith("all ") else "---:" for h in columns]
    rows = [list(columns), rules, *([cell(r) for cell in columns.values()] for r in records)]
    kept = " Freed memory kept." if suite["machine"].get("freed_memory") == "kept" else ""
    older = sorted({r["memory_commit"] for r in records if "memory_commit" in r})
    memory = f" Memory as of {' and '.join(older)}." if older else ""
    return [
        f"## {name}",
        "",
        f"Commit {commit_name(suite['commit'])}, {suite['date']}.{kept}{memory} "
        f"Peaks in these rounds: {_ceilings(records)}.",
        "",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]


def page(folder: Path, figures: list[str]) -> str:
    """The page of a folder: the machine, the figures, a table a suite."""
    suites = load(folder)
    newest = max(suites.values(), key=lambda s: s["date"])["machine"]
    lines = [
        f"# {newest['processor']}, {newest['threads']} threads",
        "",
        "Written by `benchmarks/plots.py` from the JSON files beside it; how it was measured is in "
        "[`benchmarks/README.md`](../../README.md).",
        "",
        f"Family {newest['family']}, model {newest['model']}; {', '.join(newest['flags'])}; "
        f"kernels {newest['kernels']}. torch {newest['torch']}, oltr_ext {newest['oltr_ext']}, "
        f"Python {newest['python']}.",
        "",
        "Medians, ± half the interquartile range. Ratio: best peer / ours, above 1 where ours is "
        "faster. Share of peak: floor / ours; `mem` where memory traffic is the floor. Ulp: the "
        "largest error against float64, of outputs and in mode full of gradients, in units of the "
        "last place of the largest entry; a compiled peer's is that of its formula as it stands. "
        "MB: peak memory over inputs, outputs and gradients, empty where not measured. `*`: so "
        "slow that it was timed once. `†`: other processes took more than "
        f"{100 * BUSY:.0f} % of the processors meanwhile, so the row is no result.",
        "",
        *(line for f in figures for line in (f"![{CAPTIONS[f]}]({f})", "")),
        *(line for name, suite in suites.items() for line in _suite(name, suite)),
    ]
    return "\n".join(lines).rstrip() + "\n"
