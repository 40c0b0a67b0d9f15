"""Time and memory of an import of very many files: `oltr data from-folder`.

    python benchmarks/import_many.py FOLDER [--images 1000000] [--classes 10000]

Makes that many different PNGs of 4 x 4 pixels in a folder a class, as many as Zipf's law gives each
(4 GB on a file system of 4 KB blocks), imports them into FOLDER/lists, and prints what it took. The
files stay until they are removed.
"""

from __future__ import annotations

import argparse
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np

from oltr_ext.data.importing import Plan, read_folder
from oltr_ext.engine.importing import import_set


def png(number: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    rows = zlib.compress(b"".join(b"\0" + struct.pack(">I", number + row) for row in range(4)), 1)
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def make(folder: Path, images: int, classes: int) -> None:
    share = 1 / np.arange(1, classes + 1)
    sizes = np.maximum(3, images * share / share.sum()).astype(int)
    sizes[0] += images - sizes.sum()
    number = 0
    for label, size in enumerate(sizes):
        own = folder / f"class_{label:05d}"
        own.mkdir(parents=True)
        for _ in range(size):
            with open(f"{own}/{number:07d}.png", "wb") as file:
                file.write(png(number))
            number += 1


def megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3  # of Linux


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--classes", type=int, default=10_000)
    asked = parser.parse_args()
    source = asked.folder / "photos"
    if not source.exists():
        make(source, asked.images, asked.classes)
    before, begin, spent = megabytes(), time.perf_counter(), time.process_time()
    made = import_set(
        lambda notes: read_folder(source, notes),
        asked.folder / "lists",
        root=source,
        about={"read": "folder", "source": str(source)},
        plan=Plan(),
    )
    print("\n".join(made.words))
    print(
        f"{time.perf_counter() - begin:,.0f} s, {time.process_time() - spent:,.0f} of them of a "
        f"processor; {megabytes() - before:,.0f} MB beyond {before:,.0f}"
    )
