"""Reduces the JSON of pytest-benchmark to what the figures and tables need.

    python benchmarks/collect.py RAW.json... [--results benchmarks/results]

Writes RESULTS/MACHINE/SUITE.json, SUITE being the name of the raw file, and prints the folder. Peak
memory that was not measured again stays, with the commit that it was measured at.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import floors
import table

RESULTS = Path(__file__).parent / "results"


def _rounded(value: Any) -> Any:
    """Five significant digits are more than a shared machine can repeat."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return value


def hold_to_one_peak(records: list[dict[str, Any]]) -> None:
    """A machine has one arithmetic peak, the highest that any case of the suite measured.

    A case of few rounds may have seen a disturbed one, and a share above 1 beside it.
    """
    timed = [r for r in records if r.get("floor_flops")]
    for kind in ("fp32", "bf16"):
        highest = max((r["ceilings"][f"{kind}_gflops"] for r in timed), default=0.0)
        for r in timed:
            r["ceilings"][f"{kind}_gflops"] = highest
    for r in timed:
        rate = floors.rate(r["dtype"], r["ceilings"]) * 1e9
        arithmetic = r["floor_flops"] / rate
        memory = r["floor_bytes"] / (r["ceilings"]["read_gbytes"] * 1e9)
        r["floor_s"] = max(arithmetic, memory)
        r["bound"] = "arithmetic" if arithmetic >= memory else "memory"
        r["share_of_peak"] = arithmetic / r["ours"]["median_s"]
        r["share_of_floor"] = r["floor_s"] / r["ours"]["median_s"]


def reduced(raw: dict[str, Any]) -> dict[str, Any]:
    """Machine, commit and one record a benchmark; single times and the host's name go."""
    commit = raw.get("commit_info", {})
    records = [
        {"test": b["fullname"].rpartition("/")[2], **b["extra_info"]}
        for b in raw["benchmarks"]
        if b["extra_info"]
    ]
    hold_to_one_peak(records)
    return {
        "machine": raw["machine_info"],
        "commit": {"id": commit.get("id", "unknown"), "dirty": commit.get("dirty")},
        "date": raw["machine_info"]["date"],
        "records": [_rounded(r) for r in records],
    }


def keep_memory(result: dict[str, Any], before: dict[str, Any]) -> None:
    """It takes longer to measure than all else, so it may be of other kernels than the times."""
    commit = table.commit_name(before["commit"])
    known = {r["test"]: r for r in before["records"] if r.get("memory")}
    for r in result["records"]:
        if not r.get("memory") and r["test"] in known:
            r["memory"] = known[r["test"]]["memory"]
            r["memory_commit"] = known[r["test"]].get("memory_commit", commit)


def collect(path: Path, results: Path) -> Path:
    """Reduces one file; returns the folder of its machine."""
    result = reduced(json.loads(path.read_text()))
    folder = results / result["machine"]["slug"]
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / path.name).exists():
        keep_memory(result, json.loads((folder / path.name).read_text()))
    head = json.dumps({k: v for k, v in result.items() if k != "records"})
    records = ",\n".join(json.dumps(r) for r in result["records"])  # a record a line, for diffs
    (folder / path.name).write_text(f'{head[:-1]}, "records": [\n{records}\n]}}\n')
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("raw", nargs="+", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    for folder in sorted({collect(path, options.results) for path in options.raw}):
        print(folder)


if __name__ == "__main__":
    main()
