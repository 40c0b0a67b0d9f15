"""What an import found, in lines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from oltr_ext._words import counted
from oltr_ext.data.importing.core import LARGE, PARTS, Entry, Imported
from oltr_ext.data.importing.deal import RULE, half_of_the_images
from oltr_ext.data.importing.records import some, tidy

__all__ = ["describe"]

FEW = 20
LINE = 100
"""Characters of a line that names classes."""


def describe(made: Imported) -> list[str]:
    """The report."""
    return [
        *_counts(made),
        *made.notes.said,
        *_lacking(made),
        *_together(made),
        *_left_out(made),
        *_rule(made),
    ]


def _counts(made: Imported) -> Iterator[str]:
    total = {part: sum(made.counts[part]) for part in PARTS[:3]}
    yield (
        f"{counted(sum(total.values()), 'image')} of {counted(len(made.names), 'known class')}: "
        + ", ".join(f"{part} {count:,}" for part, count in total.items())
    )
    train = made.counts["train"]
    few = sum(count < FEW for count in train)
    half = half_of_the_images(train)
    largest = "class holds" if half == 1 else f"{half:,} classes hold"
    held = f"the largest {largest} half of them, " if len(train) > 1 else ""
    yield (
        f"tail: {max(train):,} to {min(train):,} training images a class; {held}"
        f"{counted(few, 'has', 'have')} fewer than {FEW}"
    )
    if len(names := f"classes: {some(made.names)}") <= LINE:
        yield names
    for part, classes in made.opened.items():
        if classes:
            yield (
                f"{part}: {counted(classes.total(), 'image')} of "
                f"{counted(len(classes), 'unknown class')}: " + some(sorted(classes))
            )


def _lacking(made: Imported) -> Iterator[str]:
    for part in PARTS[1:3]:
        lacking = [name for name, n in zip(made.names, made.counts[part], strict=True) if n == 0]
        if lacking and sum(made.counts[part]):
            yield f"no {part} image of {counted(len(lacking), 'class')}: {some(lacking)}"
    if not sum(made.counts["test"]):
        yield "no test images: the configuration tests on those of validation"
    for name, spelt in sorted(made.spelt.items()):
        if len(spelt) > 1:
            yield f"one class, spelt in {len(spelt)} ways that look alike: {name}"
    for name in made.names:
        if name.casefold() == "unknown":
            yield (
                f"a class is called {name}, which answers in text cannot tell from rejection: "
                f"--open {name} holds it out"
            )
    folded: dict[str, list[str]] = defaultdict(list)
    for name in made.names:
        folded[name.casefold()].append(name)
    alike = [" / ".join(names) for names in folded.values() if len(names) > 1]
    if alike:
        yield f"classes whose names differ in capitals alone: {some(alike)}"


def _together(made: Imported) -> Iterator[str]:
    """Contents, observations and groups, within and across splits."""
    seen = Counter(entry.look.sha256 for entry in made.entries)
    by_content: dict[str, list[Entry]] = defaultdict(list)  # of which there are several
    for entry in made.entries:
        if seen[entry.look.sha256] > 1:
            by_content[entry.look.sha256].append(entry)
    several = [e for e in by_content.values() if len({x.label for x in e}) > 1]
    if several:
        yield (
            f"PROBLEM: {counted(len(several), 'image is', 'images are')} in several classes: "
            + some(" = ".join(f"{tidy(x.record.name)} ({x.label})" for x in e) for e in several)
        )
    kinds = {
        "image": {k: {x.split for x in e} for k, e in by_content.items()},
        "observation": _splits_by(made, "observation"),
        "group": _splits_by(made, "group"),
    }
    for what, found in kinds.items():
        if what != "image" and found:
            yield counted(len(found), what)
        across = Counter(
            " and ".join(part for part in PARTS if part in splits)
            for splits in found.values()
            if len(splits) > 1
        )
        for where, count in across.items():
            named = [key for key, s in found.items() if len(s) > 1]
            names = [by_content[k][0].record.name for k in named] if what == "image" else named
            number = counted(count, f"{what} is", f"{what}s are")
            yield f"PROBLEM: {number} in {where}: {some(names)}"


def _splits_by(made: Imported, what: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for entry in made.entries:
        if key := getattr(entry.record, what):
            found[key].add(entry.split)
    return found


def _left_out(made: Imported) -> Iterator[str]:
    reasons: dict[str, list[str]] = defaultdict(list)
    for name, reason in made.left_out:
        kind, _, detail = reason.partition(": ")
        if kind.startswith("copy of "):
            reasons["copies of others of their class"].append(f"{name} = {reason[8:]}")
        else:
            reasons[kind].append(f"{name}: {detail}" if detail else name)
    for kind, names in reasons.items():
        yield f"left out, {kind}: {len(names):,} ({some(names)}); all in left_out.csv"
    yield from (f"passed over, {line}" for line in made.notes.lines())
    large = [entry.record.name for entry in made.entries if entry.look.pixels > LARGE]
    if large:
        yield f"larger than {LARGE / 1e6:.0f} megapixels: {len(large):,} ({some(large)})"


def _rule(made: Imported) -> Iterator[str]:
    plan = made.plan
    given = sorted({e.record.split for e in made.entries if e.record.split}) if plan.given else []
    if given:
        yield f"splits of the source are kept: {', '.join(given)}"
    asked = [f"{part} {share:g}" for part, share in (("val", plan.val), ("test", plan.test))
             if part not in given and share]  # fmt: skip
    if asked:
        yield f"rule ({', '.join(asked)}, seed {plan.seed}): {RULE}"
