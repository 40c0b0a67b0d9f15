"""From records to list files: look at each image, name the classes, deal, write."""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oltr_ext._words import counted
from oltr_ext.data.importing.content import Look, Seen, keep_bytes, key_of, look_at
from oltr_ext.data.importing.deal import Item, Share, deal, deal_open, drawn
from oltr_ext.data.importing.outcome import SEEN, finish, open_folder, table
from oltr_ext.data.importing.records import NO_CLASS, Notes, Record, tidy
from oltr_ext.data.lists import TABLE
from oltr_ext.data.samplers import batch_for

__all__ = ["Entry", "Imported", "Plan", "import_records"]

PARTS = ("train", "val", "test", "open_val", "open_test")
IMAGES = "images"
BATCH, BATCH_BYTES = 256, 64 << 20
LARGE = 89_478_485
"""Pixels from which on PIL warns of an image."""
COLUMNS = ("path", "class", "label", "split", "observation", "group", "sha256", "name")


@dataclass(frozen=True)
class Plan:
    """How a set is made of what a source has.

    Args:
        val, test: of each class, a share below 1 or a number of images; see `deal.RULE`. `test` may
            be 0: validation images are the test then.
        seed: of the order in which groups move, and of the classes that are drawn.
        open: classes to hold out as unknown, by name, or so many that the seed draws.
        given: keep the splits that the source has.
        decode: decode every image whole, not its head alone.
    """

    val: Share = 0.1
    test: Share = 0.2
    seed: int = 0
    open: int | tuple[str, ...] = ()
    given: bool = True
    decode: bool = True

    def __post_init__(self) -> None:
        if not self.val > 0 or self.test < 0:
            raise ValueError(
                f"expected val above 0 and test from 0 on, got {self.val} and {self.test}"
            )


@dataclass(slots=True)
class Entry:
    """An image of the set that is made."""

    record: Record  # without its content
    path: str  # as lists have it
    look: Look
    label: str
    split: str = ""


@dataclass
class Imported:
    """What came of an import."""

    folder: Path
    entries: list[Entry]
    names: list[str]  # of known classes, by label
    notes: Notes
    plan: Plan
    counts: dict[str, list[int]] = field(default_factory=dict)  # by split, of each known class
    opened: dict[str, Counter[str]] = field(default_factory=dict)  # open classes by split
    left_out: list[tuple[str, str]] = field(default_factory=list)  # name and reason
    spelt: dict[str, set[str]] = field(default_factory=dict)  # one class, several spellings
    words: list[str] = field(default_factory=list)


def import_records(
    records: Iterable[Record],
    out: str | Path,
    *,
    root: str | Path | None,
    about: Mapping[str, Any],
    plan: Plan,
    notes: Notes,
    describe: Callable[[Imported], list[str]],
    workers: int = 4,
) -> Imported:
    """Write lists, names, a table of all images and a configuration to a folder of its own.

    Files stay where they are, and are listed by their path from `root`. Images that come as bytes,
    and files whose path no list can hold, go to ``out/images`` under the name of their content.
    A killed import goes on when called again, and a finished one is never changed.

    Args:
        records: read once, in order.
        out: missing, empty, or of the same import.
        root: of files; None where all are bytes.
        about: JSON-able, tells one import from another.
        describe: the report, in lines.

    Raises:
        ValueError: a folder that holds something else; no image that can be read and has a class;
            classes to hold out that are not there; no class that can spare a validation image.
    """
    out = Path(os.path.abspath(out))
    about = json.loads(json.dumps({**about, "plan": asdict(plan)}))
    base = out / IMAGES if root is None else Path(os.path.abspath(root))
    made = Imported(out, [], [], notes, plan)
    with open_folder(out, about):
        seen = Seen(out / SEEN)
        with warnings.catch_warnings(), ThreadPoolExecutor(max(1, workers)) as pool:
            warnings.simplefilter("ignore")  # of large and of odd images; what matters is reported
            for entry in _looked_at(records, base, out, seen, plan, pool):
                _admit(entry, made)
        made.left_out += [(name, f"unreadable: {reason}") for name, reason in notes.broken]
        made.entries = _without_copies(made)
        _settle(made, None if root is None else base)
        made.words = describe(made)
        _write(made, base, about)
    return made


def _looked_at(
    records: Iterable[Record],
    base: Path,
    out: Path,
    seen: Seen,
    plan: Plan,
    pool: ThreadPoolExecutor,
) -> Iterator[Entry]:
    def one(record: Record) -> tuple[Entry, str | None]:
        content = record.content
        if isinstance(content, Path):
            key = key_of(content)
            look = seen.known.get(key or "")
            if look is None or (plan.decode and not look.whole):
                look = look_at(content, decode=plan.decode)
            path = _relative(content, base)
            if look.problem is None and not _listable(path):
                data = content.read_bytes()
                path = str(out / IMAGES / keep_bytes(out / IMAGES, data, look))
        else:
            look = look_at(content, decode=plan.decode)
            key, path = None, ""
            if look.problem is None:
                path = keep_bytes(out / IMAGES, content, look)
        label = tidy(record.label or "")
        label = "" if label == NO_CLASS else sys.intern(label)
        return Entry(replace(record, content=b""), path, look, label), key

    with tqdm(desc="images", unit="image", disable=None, leave=False) as bar:
        for batch in _batches(records):
            for entry, key in pool.map(one, batch):
                if key is not None:
                    seen.add(key, entry.look)
                yield entry
            bar.update(len(batch))
            seen.flush()


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Few enough to be held in memory."""
    source = iter(records)
    while first := list(islice(source, 1)):
        size = 0
        for record in source:
            first.append(record)
            size += len(record.content) if isinstance(record.content, bytes) else 0
            if len(first) >= BATCH or size >= BATCH_BYTES:
                break
        yield first


def _relative(file: Path, base: Path) -> str:
    """As it is called, links and all: from `base` where it lies in it."""
    path, inside = os.path.abspath(file), os.path.join(base, "")
    return path.removeprefix(inside)


def _listable(path: str) -> bool:
    """Whether a line of a list can hold it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return path == path.strip() and not set(path) & set("\n\r\ufeff")


def _admit(entry: Entry, made: Imported) -> None:
    if entry.look.problem is not None:
        made.left_out.append((entry.record.name, f"unreadable: {entry.look.problem}"))
    elif not entry.label:
        made.left_out.append((entry.record.name, "without a class"))
    else:
        made.spelt.setdefault(entry.label, set()).add(str(entry.record.label))
        made.entries.append(entry)


def _without_copies(made: Imported) -> list[Entry]:
    """Each content once in a class and split of the source, by its first name."""
    first: dict[tuple[str, str, str | None], str] = {}
    kept = []
    for entry in made.entries:
        given = entry.record.split if made.plan.given else None
        name = first.setdefault((entry.look.sha256, entry.label, given), entry.record.name)
        if name is entry.record.name:
            kept.append(entry)
        else:
            made.left_out.append((entry.record.name, f"copy of {tidy(name)}"))
    return kept


def _looked_in(made: Imported, base: Path | None) -> str:
    """Where files are, if none of them is there."""
    gone = f"unreadable: {os.strerror(errno.ENOENT)}"
    if base is None or not made.left_out or any(why != gone for _, why in made.left_out):
        return ""
    return f"\nlooked in {base}: --root says where they are"


def _settle(made: Imported, base: Path | None) -> None:
    """Classes, splits, counts; `base` is where files were looked for."""
    plan, entries = made.plan, made.entries
    if not entries:
        some = "; ".join(f"{name}: {why}" for name, why in made.left_out[:3])
        raise ValueError(
            f"there is no image that can be read and has a class{f' ({some})' if some else ''}"
            + _looked_in(made, base)
            + "".join(f"\n{line}" for line in (*made.notes.said, *made.notes.lines()))
        )
    out = deal_open(_to_hold_out(sorted({entry.label for entry in entries}), plan), plan.seed)
    known = [entry for entry in entries if entry.label not in out]
    items = [
        Item(
            entry.label,
            entry.look.sha256,
            tuple(
                f"{what} {value}"
                for what, value in (
                    ("observation", entry.record.observation),
                    ("group", entry.record.group),
                )
                if value
            ),
            entry.record.split if plan.given else None,
        )
        for entry in known
    ]
    splits = deal(items, val=plan.val, test=plan.test, seed=plan.seed)
    for entry, split in zip(known, splits, strict=True):
        entry.split = split
    trained = {entry.label for entry in known if entry.split == "train"}
    for entry in entries:  # of held-out classes, and of those that a source has in its test alone
        if entry.label in out:
            entry.split = out[entry.label]
        elif entry.label not in trained:
            entry.split = f"open_{entry.split}"
    numbers = all(map(str.isdecimal, trained))  # of which 1 and 01 are two
    made.names = sorted(trained, key=lambda name: (int(name) if numbers else 0, name))
    if not trained:
        raise ValueError("the splits of the source have no training image: see --deal-anew")
    for part in PARTS[:3]:
        found = Counter(entry.label for entry in entries if entry.split == part)
        made.counts[part] = [found[name] for name in made.names]
    for part in PARTS[3:]:
        made.opened[part] = Counter(entry.label for entry in entries if entry.split == part)
    if not sum(made.counts["val"]):
        raise ValueError(
            "no class can spare a validation image: each has its images in one observation, group "
            "or content"
        )


def _to_hold_out(labels: list[str], plan: Plan) -> list[str]:
    if isinstance(plan.open, int):
        if not 0 <= plan.open < len(labels):
            raise ValueError(
                f"--open {plan.open}: expected fewer than the {counted(len(labels), 'class')} "
                "there are"
            )
        return sorted(labels, key=lambda c: drawn(plan.seed, f"open {c}"))[: plan.open]
    wanted = [tidy(name) for name in plan.open]
    missing = [name for name in wanted if name not in labels]
    if missing:
        some = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
        raise ValueError(f"--open: no class {', '.join(missing)}; there are {some}")
    if set(wanted) == set(labels):
        raise ValueError("--open holds every class out: expected fewer")
    return wanted


def _write(made: Imported, base: Path, about: Mapping[str, Any]) -> None:
    number = {name: n for n, name in enumerate(made.names)}
    lines: dict[str, list[str]] = defaultdict(list)

    def label_of(entry: Entry) -> int:
        return -1 if entry.split.startswith("open") else number[entry.label]

    def row(entry: Entry) -> tuple[object, ...]:
        record = entry.record
        told = (tidy(text or "") for text in (record.observation, record.group))
        place = (entry.path, entry.label, label_of(entry), entry.split)
        return (*place, *told, entry.look.sha256, tidy(record.name))

    for entry in made.entries:
        lines[entry.split].append(f"{entry.path} {label_of(entry)}\n")
    files = {f"{part}.txt": "".join(lines[part]) for part in PARTS if lines[part]}
    files["names.txt"] = "".join(f"{name}\n" for name in made.names)
    files[TABLE] = table(COLUMNS, map(row, made.entries))
    if made.left_out:
        left = [(tidy(name), reason) for name, reason in made.left_out]
        files["left_out.csv"] = table(("name", "reason"), left)
    files["data.yaml"] = _config(made, base, files)
    files["report.txt"] = "".join(f"{line}\n" for line in made.words)
    finish(made.folder, about, files)


def _config(made: Imported, base: Path, files: Mapping[str, str]) -> str:
    """What `oltr train` takes. JSON strings are YAML's."""
    test = "test.txt" if "test.txt" in files else "val.txt"
    batch = batch_for(files["train.txt"].count("\n"))
    data = {
        "kind": "lists",
        "root": str(base),
        "lists": str(made.folder),
        "train": "train.txt",
        "val": "val.txt",
        "test": test,
        **{part: f"{part}.txt" for part in PARTS[3:] if f"{part}.txt" in files},
        "class_names": "names.txt",
    }
    body = "".join(
        f"  {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in data.items()
    )
    return (
        f"data:\n{body}"
        '# for photos: model: {backbone: "torchvision:resnet50", weights: DEFAULT}\n'
        f"stage1:\n  batch_size: {batch}\n"
        "  lr: 0.1\n  schedule: {kind: cosine}\n"
    )
