"""Small images of chosen content, as files, bytes and folders, for imports."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: int = 16) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8))


def encoded(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed).save(path)
    return path


def class_folders(root: Path, counts: dict[str, int], first: int = 0) -> None:
    """``root/NAME/N.png`` for each class; no content twice."""
    for name, count in counts.items():
        for n in range(count):
            put(root / name / f"{n}.png", first)
            first += 1


def listed(folder: Path, part: str) -> list[tuple[str, str]]:
    """Path and class name of each line of a list."""
    names = (folder / "names.txt").read_text().splitlines()
    lines = (folder / f"{part}.txt").read_text().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines]
    return [(path, names[int(n)] if n != "-1" else "?") for path, n in pairs]


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.is_symlink()
    }
