"""Making the packs of the package: fetch, render, deal, write into the cache."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from oltr_ext._words import counted
from oltr_ext.data import glyphs, icons_large
from oltr_ext.data.folders import made_folder
from oltr_ext.data.pack import Pack, cache_folder, save_pack

__all__ = ["MAKERS", "make"]

Say = Callable[[str], None]
MAKERS: dict[str, Callable[[Path | None, Path, Say], dict[str, Pack]]] = {
    "glyphs": glyphs.make,
    "icons-large": icons_large.make,
}


def make(name: str, source: Path | None = None, *, say: Say = lambda _: None) -> list[Path]:
    """Make the packs of one name of MAKERS; returns their paths in the cache.

    Args:
        source: what the images are rendered from, where it is there already: a folder of fonts or
            of .deb files, the tarball of an npm package. None fetches it into the cache.
        say: gets a line of text now and then.

    Raises:
        ValueError: no such name. OSError, RuntimeError, ValueError: see the makers; nothing half
            is left in the cache.
    """
    if name not in MAKERS:
        raise ValueError(f"no data set {name!r} to make; there are {', '.join(MAKERS)}")
    begin, paths, folder = time.perf_counter(), [], cache_folder()
    with ExitStack() as stack:
        try:  # before minutes of rendering
            stack.enter_context(made_folder(folder))
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise RuntimeError(
                f"cannot write to the cache {folder} ({error.strerror}): set OLTR_EXT_CACHE to "
                "another folder"
            ) from None
        for pack_name, pack in MAKERS[name](source, folder / "downloads", say).items():
            paths.append(folder / f"{pack_name}.npz")
            save_pack(paths[-1], pack)
            strangers = len(pack.class_names) - pack.num_known
            say(
                f"{pack_name}: {counted(len(pack.images), 'image')} of {pack.num_known} known and "
                f"{strangers} open classes, {paths[-1]}"
            )
    say(f"done in {time.perf_counter() - begin:.0f} s")
    return paths
