"""What the unknown is: groups among the images that a run rejects, for a person to name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from oltr_ext._defaults import own_defaults
from oltr_ext._words import counted
from oltr_ext.engine.lock import locked
from oltr_ext.serve import discover_files as files
from oltr_ext.serve.discover_groups import ROWS, Grouping, group_features, known_means
from oltr_ext.serve.discover_parts import Part, files_of, rejected, split
from oltr_ext.serve.inputs import taken
from oltr_ext.serve.predict import Picture
from oltr_ext.serve.trained import Trained

__all__ = ["Discovery", "Group", "discover", "grouped", "known_classes", "nearest_known"]

BELIEVED = 0.25
HANDFUL = 5


@dataclass(frozen=True)
class Group:
    """Images that seem to be of one kind.

    Attributes:
        number: from 1 on, that of most different images first.
        members: (M,) where its images are in the discovery, the surest first.
        sure: mean of theirs.
        nearest: known classes and their mean distance (1 - cosine) to it, nearest first.
    """

    number: int
    members: NDArray[np.int64]
    sure: float
    nearest: list[tuple[str, float]]

    @property
    def size(self) -> int:
        return len(self.members)


@dataclass
class Discovery:
    """What was rejected, and the groups in it.

    Attributes:
        path: (N,) the file, or ``image[n]`` or ``row[n]``, of each image that was rejected.
        group: (N,) int64, the number of its group; 0: none, it is one of the odd ones out.
        sure: (N,) silhouette in its group: 1 where its others are at no distance, 0 where the
            nearest other group or known class is as near, negative where that is nearer.
        confidence: (N,) by the run's score; below its threshold.
        features: (N, D) float32, as the run's head gets them.
        groups: in order of their numbers.
        seen: images that were asked about, those left out that could not be read.
        copies: how many of the rejected the network sees as it sees another, whose group is theirs.
        bad: what is wrong with each image that could not be read.
        cut: mean distance (1 - cosine) up to which groups were joined; NaN: none were.
        notes: what else to know of the result, in lines.
    """

    path: NDArray[np.object_]
    group: NDArray[np.int64]
    sure: NDArray[np.float64]
    confidence: NDArray[np.float64]
    features: NDArray[np.float32] = field(repr=False)
    groups: list[Group]
    seen: int
    copies: int
    bad: list[str]
    cut: float
    notes: list[str]
    limit: ClassVar[float] = BELIEVED

    def __len__(self) -> int:
        return len(self.path)

    @property
    def odd(self) -> NDArray[np.int64]:
        """Where the odd ones out are."""
        return np.flatnonzero(self.group == 0)

    @property
    def believed(self) -> list[Group]:
        """Groups at least 0.25 sure, below which a silhouette shows no structure to speak of
        (Kaufman & Rousseeuw 1990): of images a quarter nearer to one another than to any other."""
        return [each for each in self.groups if each.sure >= self.limit]

    @property
    def nearest(self) -> list[list[tuple[str, float]]]:
        """The known classes nearest to each image's group; none for the odd ones."""
        return [self.groups[number - 1].nearest if number else [] for number in self.group]


@own_defaults()
@torch.no_grad()
def discover(
    trained: Trained,
    inputs: Any,
    *,
    out: str | Path | None = None,
    nearest: int = 3,
    least: int = 2,
    say: Callable[[str], None] = lambda _: None,
) -> Discovery:
    """Group what a run rejects; see `group_features` for how, and its scale.

    Args:
        inputs: files, folders and .npy files of features, images as `Model.predict` takes them, or
            features (N, D).
        out: folder of what is found: ``groups.csv``, with a row for each image that was rejected
            and room for its name; ``groups.html``, which shows the groups; and ``parts``, by which
            a call that was killed goes on and one with more images asks of these alone. Names that
            are in ``groups.csv`` stay, and so do columns that a person added. None: nothing is
            written.
        nearest: how many known classes to name for a group.
        least: images in a group; smaller ones are odd ones out.
        say: gets a line of text where there is something to know.

    Raises:
        ValueError: a model without the means of its classes; features of another width, NaN or
            infinity; a folder without an image; a groups.csv of another make in `out`.
        BusyError: another process writes to `out`.
    """
    if least < 2 or nearest < 1:
        raise ValueError(
            f"discover: expected least from 2 and nearest from 1, got {least} and {nearest}"
        )
    known = known_classes(trained)
    bad: list[str] = []
    passed: list[str] = []
    parts = _parts(inputs, bad, passed)
    if out is None:
        found = _discover(trained, parts, bad, known, None, nearest, least)[0]
        found.notes += passed
        return found
    out = Path(out)
    with locked(out, "a discovery", say):
        given = files.read_given(out)
        found, pictures = _discover(trained, parts, bad, known, out, nearest, least)
        found.notes += passed
        asked = (part.path(n) for part in parts for n in range(len(part)))
        found.notes += files.write(out, found, pictures, given, trained, asked)
    return found


def _discover(
    trained: Trained,
    parts: Sequence[Part],
    bad: list[str],
    known: tuple[list[str], Tensor],
    out: Path | None,
    nearest: int,
    least: int,
) -> tuple[Discovery, files.Pictures]:
    whole, path, where = rejected(trained, parts, out)
    made, different = grouped(whole.features, whole.pixels, known[1], least=least)
    group, sure = made.group, made.sure
    groups = []
    for n, near in enumerate(nearest_known(made.means, *known, nearest)):
        members = np.flatnonzero(group == n + 1)
        members = members[np.argsort(-sure[members], kind="stable")]
        groups.append(Group(n + 1, members, float(sure[members].mean()), near))
    names = np.empty(len(path), np.object_)
    names[:] = path
    found = Discovery(
        path=names,
        group=group,
        sure=sure,
        confidence=whole.confidence,
        features=whole.features,
        groups=groups,
        seen=whole.seen,
        copies=len(group) - different,
        bad=bad + whole.bad,
        cut=made.cut,
        notes=[],
    )
    found.notes = _notes(found, different, made.cells)
    return found, lambda index: _picture(*where[index])


def _parts(inputs: Any, bad: list[str], passed: list[str]) -> list[Part]:
    """What may be asked, in parts; and what cannot be read or was passed over, in lines."""
    _, images = taken(inputs, "discover", "files, images or features")
    if isinstance(images, np.ndarray):
        return list(split([], bad.append, rows=images))
    if all(isinstance(each, str | Path) for each in images):
        images = list(files_of(images, passed.append))  # type: ignore[arg-type]
    return list(split(images, bad.append))


def grouped(
    features: NDArray[np.float32], pixels: NDArray[np.uint8], known: Tensor, *, least: int = 2
) -> tuple[Grouping, int]:
    """`group_features` of features (N, D), of which copies, by the hash (N, 16) of their pixels,
    count once; and how many are different."""
    first, copy = _copies(pixels)
    rows = torch.from_numpy(features)
    if len(first) < len(rows):
        rows = rows[torch.from_numpy(first)]
    made = group_features(rows, known, least=least)
    return replace(made, group=made.group[copy], sure=made.sure[copy]), len(first)


def _copies(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each different image is met first, and which of these each image is."""
    if len(pixels) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    _, first, which = np.unique(pixels, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order].astype(np.int64), place[which.reshape(-1)].astype(np.int64)


def known_classes(trained: Trained) -> tuple[list[str], Tensor]:
    """Names (K,) of the classes that a run knows by now, and their means as of `known_means`.

    Raises:
        ValueError: streamed banks; see `known_means`.
    """
    labels = np.flatnonzero(np.asarray(trained.train_counts) > 0)  # others have no mean
    joined = trained.model.head.bank.members  # classes that were enrolled
    if joined is not None:
        labels = np.append(labels, joined.cpu().long().numpy())
    living = ~np.isin(labels, trained.roster.removed)
    trained.check_in_memory("discover")
    means = known_means(trained.model.head.bank)[torch.from_numpy(living)]
    return [trained.names[label] for label in labels[living]], means


def nearest_known(
    means: Tensor, names: Sequence[str], known: Tensor, count: int
) -> list[list[tuple[str, float]]]:
    """For each of means (G, D) the known classes nearest to it, and distances (1 - cosine)."""
    found: list[list[tuple[str, float]]] = []
    for rows in means.split(ROWS):
        near, index = (1 - rows @ known.t()).topk(min(count, len(known)), dim=1, largest=False)
        pairs = zip(index.tolist(), near.clamp_min(0).tolist(), strict=True)
        found += [[(names[c], d) for c, d in zip(*pair, strict=True)] for pair in pairs]
    return found


def _notes(found: Discovery, different: int, cells: int) -> list[str]:
    """What the numbers alone do not say."""
    notes = []
    if found.seen == 0:
        notes.append("no image could be read")
    elif len(found) == 0:
        notes.append(
            f"none of the {counted(found.seen, 'image')} is rejected: there is nothing unknown"
        )
    elif different == 1 and len(found) > 1:
        notes.append(f"all {len(found):,} that are rejected are one image: there is no group")
    elif different < HANDFUL:
        what = "image is" if different == 1 else "different images are"
        notes.append(f"only {different} {what} rejected: too few to tell much about groups")
    elif not found.groups:
        notes.append("no two of the rejected images are near enough to one another for a group")
    if found.copies and different > 1:
        notes.append(f"{found.copies:,} of the rejected are copies of others, counted once")
    if cells:
        notes.append(
            f"{counted(different, 'image is', 'images are')} too many to compare all pairs: "
            f"{cells:,} means of them were"
        )
    return notes


def _picture(part: Part, place: int) -> Picture | None:
    """What to show of an image; None for a row of features."""
    return None if part.rows is not None else part.images[place]
