"""What a training step of a memory head costs where processes share its classes, by arithmetic:

    python benchmarks/cost_model.py                       # writes results/cost_model.md
    python benchmarks/cost_model.py --classes 1e7 --width 256 --batch 1024 --processes 16 \\
        --tflops 15 --gbytes 300 --network 12 --memory 512             # one row, of your machines

Floors, as in `floors.py`: arithmetic and memory traffic overlap fully, the network does not. The
part on a processor is held against `results/sharded.json`, measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple

from floors import floor

RESULTS = Path(__file__).parent / "results"
CLASSES = (10**6, 10**7, 10**8)


class Machines(NamedTuple):
    """Processes that share the classes. Rates are of one of them."""

    name: str
    processes: int
    tflops: float
    gbytes: float  # of memory, a second
    network: float  # GB a second, each way
    memory: float  # GB
    size: int  # bytes of a number of the banks and their gradients


KINDS = (
    Machines("8 H100 in one machine, bfloat16", 8, 989, 3350, 450, 80, 2),
    Machines("8 H100 in one machine, float32 by TF32", 8, 495, 3350, 450, 80, 4),
    Machines("16 processors of 32 cores, float32", 16, 3.8, 300, 12.5, 512, 4),
)
"""Of makers' data sheets: dense rates, 3.35 TB/s, NVLink 4. A core of the third as `fma_peak.cpp`
measured two of an Emerald Rapids, halved for 32 at once; eight channels of DDR5-4800; 100 Gb/s."""


class Cost(NamedTuple):
    arithmetic: float  # seconds
    traffic: float
    network: float
    state: float  # GB a process

    @property
    def seconds(self) -> float:
        return max(self.arithmetic, self.traffic) + self.network


def cost(of: Machines, B: int, C: float, D: int) -> Cost:
    """A step of B rows in all: memory head, cross-entropy, centroid loss, SGD with momentum."""
    own = int(-(-C // of.processes))
    step = floor("training_step", "full", B, own, D, of.size)
    parameters = 3 * own * D + own + D * D
    traffic, state = step.bytes, 3 * of.size * parameters
    if of.size < 4:  # a master and its momentum in float32, besides
        traffic += (2 * 4 + 2 * 4 + 2 * of.size - 5 * of.size) * parameters
        state = (2 * of.size + 2 * 4) * parameters
    ring = 2 * (of.processes - 1) / of.processes
    gathered = (of.processes - 1) / of.processes * B * (D + 1)
    sent = 4 * (gathered + ring * reduced(B, D, centroid_loss=True))
    return Cost(
        step.flops / (1e12 * of.tflops),
        traffic / (1e9 * of.gbytes),
        sent / (1e9 * of.network),
        state / 1e9,
    )


def reduced(B: int, D: int, *, centroid_loss: bool) -> int:
    """Numbers of 4 bytes that a process gives to all-reduce; a class counts twice, of 8 bytes."""
    recalled, nearest, entropy = B * (D + 2), 3 * B, 3 * B
    backward = (3 if centroid_loss else 2) * B * D
    return recalled + nearest + entropy + backward + (D + 2 if centroid_loss else 0)


def checked() -> list[str]:
    """Lines that hold the model against what was measured."""
    made = json.loads((RESULTS / "sharded.json").read_text())
    suite = json.loads((RESULTS / made["machine"]["slug"] / "meta_embedding.json").read_text())
    peaks = suite["records"][0]["ceilings"]
    B, D = made["batch"], made["width"]
    lines = ["| classes | floor, ms | measured, ms | share | kB given, by formula | counted |"]
    lines.append("| ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in made["rows"]:
        if row["what"] != "memory head, two processes of one thread":
            continue
        own = row["classes"] // 2
        parts = [floor(op, "full", B, own, D) for op in ("meta_embedding", "cosine_cross_entropy")]
        flops = sum(part.flops for part in parts) - 2 * B * own * D  # the memory has no gradient
        moved = sum(part.bytes for part in parts)
        # a process has one of the two threads that the peaks are of
        least = 2 * max(flops / peaks["fp32_gflops"], moved / peaks["read_gbytes"]) / 1e9
        given = 4 * reduced(B, D, centroid_loss=False)
        lines.append(
            f"| {row['classes']:,} | {1e3 * least:.0f} | {1e3 * row['seconds']:.0f} | "
            f"{100 * least / row['seconds']:.0f} % | {given / 1e3:.0f} | {row['bytes'] / 1e3:.0f} |"
        )
    return lines


def line(of: Machines, B: int, C: float, D: int) -> str:
    found = cost(of, B, C, D)
    fits = "" if found.state <= of.memory else ", does not fit"
    return (
        f"| {of.name} | {C:,.0f} x {D} | {found.state:,.1f}{fits} | {1e3 * found.arithmetic:.3g} | "
        f"{1e3 * found.traffic:.3g} | {1e3 * found.network:.3g} | {1e3 * found.seconds:.3g} |"
    )


HEAD = (
    "| processes | bank | GB of state a process | arithmetic, ms | memory, ms | network, ms | "
    "step at least, ms |\n| --- | --- | ---: | ---: | ---: | ---: | ---: |"
)


def page(B: int) -> str:
    rows = [line(of, B, C, D) for of in KINDS for C in CLASSES for D in (64, 512)]
    return "\n".join(
        [
            "# What sharing classes costs, by arithmetic",
            "",
            f"A training step of an `OLTRHead` on {B:,} rows in all, with SGD and momentum: three "
            "banks, their gradients and momenta. Floors: arithmetic and memory traffic overlap "
            "fully, the network not at all. In bfloat16 there is a master in float32. State is "
            "of weights, gradients and momenta. Nothing of the network grows with the classes. "
            "Rates are makers' own, and of no GPU has anything been measured here.",
            "",
            HEAD,
            *rows,
            "",
            "## Held against what was measured",
            "",
            "The head's step of [`sharded.md`](sharded.md): two processes of one thread, without "
            "centroid loss and optimizer, at the peaks of that machine. The share says by how much "
            "a floor is passed there: plan with two to three times the floors above.",
            "",
            *checked(),
            "",
            "`python benchmarks/cost_model.py`; `--help` says how to ask for other machines.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="The least a training step of a head can cost")
    parser.add_argument("--classes", type=float)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1024, help="rows in all; default: %(default)s")
    for name, field in Machines.__annotations__.items():
        if name != "name":
            kind = int if "int" in str(field) else float
            parser.add_argument(f"--{name}", type=kind, default=getattr(KINDS[0], name))
    args = parser.parse_args()
    if args.classes is None:
        (RESULTS / "cost_model.md").write_text(page(args.batch))
        return
    rates = {name: getattr(args, name) for name in Machines._fields if name != "name"}
    print(HEAD)
    print(line(Machines("yours", **rates), args.batch, args.classes, args.width))


if __name__ == "__main__":
    main()
