"""The README's table of speeds, both makes side by side, from the results beside it."""

from __future__ import annotations

from pathlib import Path

import table

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks/plots.py writes this table -->\n\n", "\n<!-- as far as here -->\n"
MAKES = {
    "Zen 4": "amd-epyc-family-25-model-17-2-threads",
    "Emerald Rapids, AMX": "intel-xeon-processor-family-6-model-167-2-threads",
}
SHAPES = (
    (256, 1000, 512),
    (256, 8142, 512),
    (128, 8142, 2048),
    (64, 100_000, 512),
    (64, 1_000_000, 512),
)
DTYPES = ("float32", "bfloat16")
MODES = {"forward": "forward", "full": "forward + backward"}


def _cell(records: list[table.Record], key: tuple[object, ...]) -> str:
    """Ours / best peer, share of the floor; a dash where it was not measured, or not alone."""
    for r in records:
        at = (r["op"], r["mode"], r["dtype"], r["B"], r["C"], r["D"])
        if at == key and r["best_peer"] and r["others_cpu"] <= table.BUSY:
            ours, peer = (1e3 * r[k]["median_s"] for k in ("ours", "best"))
            return f"{_number(ours)} / {_number(peer)}, {100 * r['share_of_floor']:.0f} %"
    return "-"


def _number(ms: float) -> str:
    return table.number(ms) if ms < 1000 else f"{ms:,.0f}"


def lines(results: Path = RESULTS) -> list[str]:
    """Markdown: a row a shape and dtype, forward and both passes for each make."""
    made = {}
    for make, folder in MAKES.items():
        suites = table.load(results / folder)
        found = [suites[s]["records"] for s in ("meta_embedding", "scaling") if s in suites]
        records = [r for suite in found for r in suite]
        made[make] = [{**r, "best": r["peers"].get(r["best_peer"])} for r in records]
    heads = [f"{make}: {text}" for make in MAKES for text in MODES.values()]
    rows = [["B x C x D", "", *heads], ["---", "---", *["---:"] * len(heads)]]
    for B, C, D in SHAPES:
        for dtype in DTYPES:
            cells = [
                _cell(made[make], ("meta_embedding", mode, dtype, B, C, D))
                for make in MAKES
                for mode in MODES
            ]
            if set(cells) != {"-"}:
                rows.append([f"{B} x {C:,} x {D:,}", dtype, *cells])
    return [f"| {' | '.join(row)} |\n" for row in rows]


def write(readme: Path = README, results: Path = RESULTS) -> None:
    """Puts the table between its two marks."""
    before, rest = readme.read_text().split(BEGIN)
    after = rest.split(END)[1]
    readme.write_text(before + BEGIN + "".join(lines(results)) + END + after)
