"""What a run rejects of many images, or makes of all: found part by part, each kept once whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from oltr_ext._files import written
from oltr_ext._words import counted
from oltr_ext.data.decode import image_endings
from oltr_ext.serve.predict import (
    Picture,
    image_batches,
    name_of,
    open_rows,
    row_features,
)
from oltr_ext.serve.trained import Trained

__all__ = ["Part", "Rejected", "embedded", "files_of", "rejected", "split"]

PART, BATCH = 512, 64
FOLDER, FORMAT = "parts", 1
OWN = re.compile(r"[0-9a-f]{24}\.npz|\.[0-9a-f]{24}\.npz\.tmp")
"""Files that are made here, among whatever else a folder of that name holds."""


@dataclass(frozen=True)
class Part:
    """Up to `PART` images, or rows of features."""

    name: str  # of the rows, or where the images begin
    images: Sequence[Picture] = ()
    rows: NDArray[Any] | None = None
    first: int = 0

    def __len__(self) -> int:
        return len(self.images) if self.rows is None else len(self.rows)

    def path(self, number: int) -> str:
        if self.rows is not None:
            return f"{self.name}[{self.first + number}]"
        return name_of(self.images[number], self.first + number)

    def digest(self, run: str) -> str | None:
        """Of what its answers depend on; None where that is in memory."""
        files = self.images if self.rows is None else [Path(self.name)]
        if self.rows is not None and not self.name.endswith(".npy"):
            return None
        said: list[Any] = [FORMAT, run, self.first, len(self)]
        for file in files:
            if not isinstance(file, str | Path):
                return None
            try:
                state = os.stat(file)
            except OSError:
                said.append([str(file)])
            else:
                said.append([str(file), state.st_size, state.st_mtime_ns])
        return hashlib.blake2b(json.dumps(said).encode(), digest_size=12).hexdigest()


@dataclass
class Rejected:
    """What a run rejects of a part, or of all; by `embedded` every image, rejected or not.

    Attributes:
        seen: images that could be read.
        place: (N,) where in the part each is; of all parts together empty.
        features: (N, D) float32, as the head gets them. confidence: (N,) float64; by `embedded`
            NaN.
        pixels: (N, 16) uint8, a hash of what the network is given.
        bad: what is wrong with each image that could not be read, its name included.
    """

    seen: int
    place: NDArray[np.int64]
    features: NDArray[np.float32]
    confidence: NDArray[np.float64]
    pixels: NDArray[np.uint8]
    bad: list[str]


def files_of(
    paths: Iterable[str | Path], note: Callable[[str], object] = lambda _: None
) -> list[Path]:
    """Files, and for each folder the images below it by their endings, in order; each once.

    Hidden files and folders are passed over, and links to folders, which may lead round in circles.

    Args:
        note: gets a line for each folder in which links were passed over.

    Raises:
        ValueError: a folder without an image.
    """
    endings = image_endings()
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            found[path] = None
            continue
        inside: list[Path] = []
        links = 0
        for folder, folders, files in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            links += sum(Path(folder, name).is_symlink() for name in folders)
            inside += [
                Path(folder, name)
                for name in sorted(files)
                if not name.startswith(".") and Path(name).suffix.lower() in endings
            ]
        passed = f"{counted(links, 'link to a folder', 'links to folders')} passed over"
        if not inside:
            raise ValueError(f"no image in the folder {path}{f'; {passed}' if links else ''}")
        if links:
            note(f"{path}: {passed}")
        found.update(dict.fromkeys(inside))
    return list(found)


def split(
    images: Sequence[Picture],
    on_error: Callable[[str], None],
    rows: NDArray[Any] | None = None,
) -> Iterator[Part]:
    """Parts of images, of the rows of .npy files among them, and of rows in memory."""
    pictures: list[Picture] = []
    if rows is not None:
        yield from _rows("row", rows)
    for image in images:
        if isinstance(image, str | Path) and str(image).endswith(".npy"):
            try:
                yield from _rows(str(image), open_rows(Path(image)))
            except (FileNotFoundError, ValueError) as error:
                on_error(str(error))
        else:
            pictures.append(image)
    for first in range(0, len(pictures), PART):
        yield Part("image", pictures[first : first + PART], first=first)


def _rows(name: str, rows: NDArray[Any]) -> Iterator[Part]:
    if rows.ndim != 2:
        raise ValueError(f"{name}: expected features (N, D), got shape {rows.shape}")
    for first in range(0, max(len(rows), 1), PART):
        yield Part(name, rows=rows[first : first + PART], first=first)


def rejected(
    trained: Trained, parts: Sequence[Part], folder: Path | None = None
) -> tuple[Rejected, list[str], list[tuple[Part, int]]]:
    """What the run rejects of all parts, with the path of each and where it is.

    Args:
        folder: where each part is kept once it is whole, and taken up; of others that lie there
            nothing remains.
    """
    return _collected(trained, parts, folder, False, lambda _: None)


def embedded(
    trained: Trained,
    parts: Sequence[Part],
    folder: Path | None = None,
    *,
    step: Callable[[int], None] = lambda _: None,
) -> tuple[Rejected, list[str], list[tuple[Part, int]]]:
    """Likewise every image, whatever the run's classes are: what is kept holds when they change.

    Args:
        step: told how many more images are done with.
    """
    return _collected(trained, parts, folder, True, step)


def _collected(
    trained: Trained,
    parts: Sequence[Part],
    folder: Path | None,
    every: bool,
    step: Callable[[int], None],
) -> tuple[Rejected, list[str], list[tuple[Part, int]]]:
    kept = None if folder is None else folder / FOLDER
    run = "" if kept is None else _digest(trained, every)
    found: list[Rejected] = []
    used: set[Path] = set()
    with tqdm(total=sum(map(len, parts)), desc="embed", unit="image", disable=None) as bar:
        for part in parts:
            digest = None if kept is None else part.digest(run)
            file = None if kept is None or digest is None else kept / f"{digest}.npz"
            answer = None if file is None else _read(file)
            if answer is None:
                answer = _ask(trained, part, every, step)
                if file is not None:
                    _write(file, answer)
            else:
                step(len(part))
            if file is not None:
                used.add(file)
            found.append(answer)
            bar.update(len(part))
    if kept is not None and kept.is_dir():
        for file in set(kept.iterdir()) - used:
            if OWN.fullmatch(file.name):
                file.unlink()
    where = [(part, int(n)) for part, one in zip(parts, found, strict=True) for n in one.place]
    width = trained.model.feature_dim
    whole = Rejected(
        sum(one.seen for one in found),
        np.empty(0, np.int64),
        np.concatenate([np.empty((0, width), np.float32), *(one.features for one in found)]),
        np.concatenate([np.empty(0), *(one.confidence for one in found)]),
        np.concatenate([np.empty((0, 16), np.uint8), *(one.pixels for one in found)]),
        [line for one in found for line in one.bad],
    )
    return whole, [part.path(n) for part, n in where], where


@torch.no_grad()
def _ask(trained: Trained, part: Part, every: bool, step: Callable[[int], None]) -> Rejected:
    bad: list[str] = []
    rows: list[tuple[Any, ...]] = []
    seen = 0
    for numbers, pixels, features in _batches(trained, part, bad):
        if every:
            out = torch.ones(len(features), dtype=torch.bool)
            confidence = torch.full((len(features),), torch.nan)
        else:
            label, confidence = trained.model.head.predict(features)
            out = (label < 0).cpu()
        seen += len(numbers)
        step(len(numbers))
        rows.append(
            (
                np.asarray(numbers, np.int64)[out.numpy()],
                features.cpu()[out].numpy(),
                confidence.cpu()[out].numpy(),
                np.array([_hash(each) for each in pixels[out.numpy()]], np.uint8).reshape(-1, 16),
            )
        )
    step(len(part) - seen)  # those that cannot be read
    if not rows:
        none = np.empty(0, np.int64)
        empty = np.empty((0, trained.model.feature_dim), np.float32)
        return Rejected(0, none, empty, np.empty(0), np.empty((0, 16), np.uint8), bad)
    place, vectors, scores, hashes = (np.concatenate(x) for x in zip(*rows, strict=True))
    return Rejected(seen, place, vectors, scores.astype(np.float64), hashes, bad)


def _batches(
    trained: Trained, part: Part, bad: list[str]
) -> Iterator[tuple[list[int], NDArray[Any], torch.Tensor]]:
    if part.rows is None:
        for numbers, pixels, features in image_batches(
            trained, part.images, BATCH, lambda error: bad.append(str(error))
        ):
            yield numbers, pixels.numpy(), features
        return
    begin = 0
    for _, features in row_features(trained, part.rows, name=part.name, batch_size=PART):
        numbers = list(range(begin, begin := begin + len(features)))
        yield numbers, np.ascontiguousarray(part.rows[numbers]), features


def _hash(pixels: NDArray[Any]) -> list[int]:
    return list(hashlib.blake2b(pixels.tobytes(), digest_size=16).digest())


def _digest(trained: Trained, every: bool) -> str:
    """Of all that an answer depends on but the image; of every image features alone are kept, on
    which no head acts."""
    source = (trained.source or {}).get("weights_sha256")
    said = [trained.config.model_dump(mode="json"), trained.image_shape, source]
    digest = hashlib.sha256(json.dumps([*said, "every"] if every else said).encode())
    for key, value in trained.model.state_dict().items():
        if every and key.startswith("head."):
            continue
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(file: Path, part: Rejected) -> None:
    with written(file) as out:
        np.savez(
            out,
            seen=part.seen,
            place=part.place,
            features=part.features,
            confidence=part.confidence,
            pixels=part.pixels,
            bad=json.dumps(part.bad),
        )


def _read(file: Path) -> Rejected | None:
    """What `_write` wrote; None where there is none, or it is damaged."""
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as held:
            return Rejected(
                int(held["seen"]),
                held["place"],
                held["features"],
                held["confidence"],
                held["pixels"],
                json.loads(str(held["bad"])),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
