"""One table: methods on a data set over several seeds, as JSON of every run and as Markdown."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from runs import judged
from tune import chosen

from oltr_ext import __version__, use_backend
from oltr_ext.config.loading import load_config
from oltr_ext.config.methods import METHODS
from oltr_ext.config.schema import Config

RESULTS = Path(__file__).parent.parent / "results" / "tables"
COLUMNS = ("overall", "many", "medium", "few", "auroc", "fpr95", "oscr", "F oltr2019", "F oltr2020")
SETTINGS = {
    True: "with settings that `tune.py` chose by the same number of trials",
    False: "with the settings that it comes with",
}
LOW = ("fpr95",)  # columns where low is good
Runs = dict[str, list[dict[str, Any]]]  # row name -> a run a seed


@dataclass(frozen=True)
class Row:
    """One line of a table: a method with overrides on top of what tuning chose."""

    name: str
    method: str
    overrides: tuple[str, ...] = ()


EVERY = tuple(Row(method, method) for method in METHODS)
MANY = (  # with thousands of classes a random classifier starves OLTR
    Row(
        "oltr, from class means",
        "oltr",
        ("stage2.classifier_init=means", "stage2.selector_init=zero"),
    ),
)


@dataclass(frozen=True)
class Table:
    """What a script under `tables/` makes."""

    name: str  # of the results' files
    title: str
    config: str  # packaged configuration
    seeds: tuple[int, ...]
    rows: Sequence[Row] = EVERY
    overrides: tuple[str, ...] = ()  # for every row
    notes: str = ""
    tuned: bool = True  # False: every method as packaged, whatever `tune.py` chose elsewhere


def configured(table: Table, row: Row, seed: int) -> Config:
    overrides = [*table.overrides, *settings(table, row), f"seed={seed}"]
    return load_config(table.config, overrides, method=row.method)


def settings(table: Table, row: Row) -> list[str]:
    return [*(chosen(row.method, table.config) if table.tuned else ()), *row.overrides]


def make(table: Table) -> None:
    """The command line of a table's script."""
    parser = argparse.ArgumentParser(description=table.title)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(table.seeds))
    parser.add_argument(
        "--rows", nargs="+", help="make these anew and keep the others; default: all"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    parser.add_argument(
        "--train-only", action="store_true", help="for a process beside others; writes no table"
    )
    parser.add_argument(
        "--join", action="store_true", help="these seeds join those that the table has"
    )
    args = parser.parse_args()
    rows = [r for r in table.rows if args.rows is None or r.name in args.rows]
    file = RESULTS / f"{table.name}.json"
    if args.join:
        if args.rows or not file.exists():
            parser.error(f"--join wants {file} and every row of it")
        extended(json.loads(file.read_text()), recorded(table, rows), args.seeds)  # before hours
    if args.rows and not args.train_only and file.exists():
        made = json.loads(file.read_text())["seeds"]
        if made != args.seeds:
            parser.error(f"{file.name} has seeds {made}: other rows cannot join {args.seeds}")
    with use_backend("native"):
        runs: Runs = {row.name: [] for row in rows}
        for seed in args.seeds:
            for row in rows:
                result = judged(configured(table, row, seed), args.runs)
                runs[row.name].append({"seed": seed, **result})
                shown = {k: round(result["test"][k], 1) for k in COLUMNS[:5]}
                print(f"{table.name} {row.name} {seed} {shown}", file=sys.stderr, flush=True)
    if not args.train_only:
        write(table, rows, runs, args.seeds, join=args.join)


def write(
    table: Table, rows: Sequence[Row], runs: Runs, seeds: Sequence[int], *, join: bool = False
) -> None:
    """The rows of the same seeds stay; with `join` their other seeds do."""
    file = RESULTS / f"{table.name}.json"
    before = json.loads(file.read_text()) if file.exists() else {"seeds": None}
    made = recorded(table, rows)
    if join:
        made, seeds = extended(before, made, seeds)
        runs = {name: [*before["runs"][name], *runs[name]] for name in made}
    elif before["seeds"] == list(seeds):
        made, runs = {**before["rows"], **made}, {**before["runs"], **runs}
    order = [row.name for row in table.rows if row.name in runs]
    about = {
        "title": table.title,
        "command": f"python benchmarks/tables/{table.name}.py",
        "threads": torch.get_num_threads(),
        "seeds": list(seeds),
        "rows": {name: made[name] for name in order},
    }
    runs = {name: runs[name] for name in order}
    RESULTS.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**about, "runs": runs}) + "\n")
    file.with_suffix(".md").write_text(markdown(table, about, runs))
    print(file.with_suffix(".md"))


def recorded(table: Table, rows: Sequence[Row]) -> dict[str, Any]:
    """By row, what is told of it beside its runs."""
    return {
        row.name: {
            "settings": settings(table, row),
            "configuration": configured(table, row, 0).model_dump(mode="json", exclude={"seed"}),
            "versions": f"oltr_ext {__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}",
            "date": datetime.date.today().isoformat(),
        }
        for row in rows
    }


def extended(
    before: dict[str, Any], made: dict[str, Any], seeds: Sequence[int]
) -> tuple[dict[str, Any], list[int]]:
    """Rows and seeds of a table that others join, or the end of the program where they cannot."""
    if before["rows"].keys() != made.keys():
        sys.exit(f"the table has other rows: {sorted(before['rows'].keys() ^ made.keys())}")
    both = [*before["seeds"], *seeds]
    if len(set(both)) < len(both):
        sys.exit(f"a seed is there already, of {both}")
    return {name: joined(name, before["rows"][name], made[name]) for name in before["rows"]}, both


def joined(name: str, before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What is recorded of a row whose seeds were made at two times, under the same settings; keys
    that configurations have had since are taken to be as they were."""
    one, other = (dict(leaves(each["configuration"])) for each in (before, now))
    changed = sorted(key for key in one.keys() & other.keys() if one[key] != other[key])
    gone = sorted(one.keys() - other.keys())
    if changed or gone or before["settings"] != now["settings"]:
        sys.exit(f"{name} had other settings: {changed + gone or before['settings']}; make it anew")
    both = {
        key: " and ".join(dict.fromkeys((*before[key].split(" and "), now[key])))
        for key in ("date", "versions")
    }
    return {**now, **both}


def leaves(tree: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield above + key, value


def values(runs: list[dict[str, Any]], column: str) -> NDArray[np.float64]:
    return np.array([run["test"][column] for run in runs], dtype=np.float64)


def spread(v: NDArray[np.float64]) -> float:
    return float(v.std(ddof=1)) if len(v) > 1 else 0.0


def best(column: str, runs: Runs) -> set[str]:
    """The leading row, and those within its standard deviation."""
    sign = -1 if column in LOW else 1
    means = {name: sign * values(each, column).mean() for name, each in runs.items()}
    first = max(means, key=lambda name: means[name])
    level = means[first] - spread(values(runs[first], column))
    return {name for name, mean in means.items() if mean >= level}


def markdown(table: Table, about: dict[str, Any], runs: Runs) -> str:
    several = len(about["seeds"]) > 1
    seeds = ", ".join(map(str, about["seeds"]))
    lines = [
        f"# {table.title}",
        "",
        f"Percent{', mean ± standard deviation' if several else ''} over seed"
        f"{'s' if several else ''} {seeds}; bold: the best"
        f"{' and what lies within its standard deviation' if several else ''}. AUROC, FPR95 and "
        "OSCR by the score that validation data choose; both F "
        "rules at the threshold calibrated there, which keeps 95 % of the known. Every method "
        f"trains for the same epochs, {SETTINGS[table.tuned]}. The last column is what a row "
        "expects of the test images, where that can be set: classes all alike, as frequent as in "
        "training, or a share of that tail. "
        f"{table.notes}".rstrip(),
        "",
        f"| method | {' | '.join(COLUMNS)} | score | expects |",
        f"| --- |{' ---: |' * len(COLUMNS)} --- | --- |",
    ]
    leading = {column: best(column, runs) for column in COLUMNS}
    for name, each in runs.items():
        cells = []
        for column in COLUMNS:
            v = values(each, column)
            cell = f"{v.mean():.1f}" + (f" ± {spread(v):.1f}" if several else "")
            cells.append(f"**{cell}**" if name in leading[column] else cell)
        scores = ", ".join(sorted({run["score"] for run in each}))
        expects = ", ".join(sorted({run.get("expects", "not recorded") for run in each}))
        lines.append(f"| {name} | {' | '.join(cells)} | {scores} | {expects} |")
    scores = list(dict.fromkeys(s for each in runs.values() for s in each[0]["test"]["auroc of"]))
    lines += ["", "AUROC by every score:", "", f"| method | {' | '.join(scores)} |"]
    lines.append(f"| --- |{' ---: |' * len(scores)}")
    for name, each in runs.items():
        of = [run["test"]["auroc of"] for run in each]
        cells = [f"{np.mean([o[s] for o in of]):.1f}" if s in of[0] else "" for s in scores]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "Settings other than the packaged ones, and median seconds of a run on "
        f"{about['threads']} thread{'s' if about['threads'] > 1 else ''} of a shared machine "
        "(stage 1 included):",
        "",
    ]
    for name, each in runs.items():
        settings = " ".join(f"`{s}`" for s in about["rows"][name]["settings"]) or "none"
        seconds = np.median([run["seconds"] for run in each])
        lines.append(f"- {name}: {settings}; {seconds:.0f} s")
    made = " and ".join(sorted({f"{r['date']} by {r['versions']}" for r in about["rows"].values()}))
    lines += ["", f"`{about['command']}`, {made}.", ""]
    return "\n".join(lines)
