"""What becomes of the images of lists: size and augmentation, chosen by their size unless said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, cast

import numpy as np
from PIL import Image

from oltr_ext.config.augment_keys import ListAugment
from oltr_ext.config.schema import ListData
from oltr_ext.data import GENTLE, Augment, Recipe, read_list
from oltr_ext.data.transforms import Policy
from oltr_ext.models import Wants

__all__ = ["SMALL", "described", "recipe", "settled", "spelt"]

SMALL = 128
"""Images of at most so many pixels on their longer side are taken whole by default."""

LARGE = 224
"""Side of the squares that larger ones become, unless published weights want another."""

SMALLEST = 16
"""Smaller images are enlarged to so many, for a backbone halves them several times."""

NEUTRAL = {"crop": 1.0, "policy": "none"}
"""Keys that do nothing at these values; the others at 0."""

OWN = tuple(field.name for field in fields(Recipe) if field.name != "augment")
"""Keys of `ListAugment` that a `Recipe` has itself, and not its `augment`; `flip` among them."""

KEYS = tuple(key for key in ListAugment.model_fields if key != "preset")

LOOKED_AT = 200  # images of the training list, evenly spaced, of which the size is read


def settled(data: ListData, wants: Wants | None = None) -> ListData:
    """The same with every choice made that is left to the size of the images.

    They are small where some training images are at most `SMALL` pixels on the longer side (their
    median), or `image_size` is.

    Args:
        wants: the images that published weights want, however small they come.
    """
    if data.interpolation == "auto":
        smooth = "bilinear" if wants is None else wants.interpolation
        data = data.model_copy(update={"interpolation": smooth})
    size, augment = data.image_size, data.augment
    if size != "auto" and None not in augment.model_dump().values():
        return data
    side = (LARGE if wants is None else wants.size) if size == "auto" else size
    if size == "auto" or (size > SMALL and augment.preset not in ("photo", "gentle", "none")):
        median = _longer_side(data)
        small = min(median, side) <= SMALL
        if size == "auto" and small and wants is None:
            side = max(SMALLEST, median)
    else:
        small = size <= SMALL
    preset = augment.preset
    if preset == "auto":
        preset = "gentle" if small else "photo"
    made = _preset(preset, small)
    keys = {key: getattr(made, key, getattr(made.augment, key, None)) for key in KEYS}
    keys.update({**augment.model_dump(exclude_none=True), "preset": preset})
    return data.model_copy(update={"image_size": side, "augment": ListAugment.model_validate(keys)})


def _preset(name: str, small: bool) -> Recipe:
    if name == "photo":
        return Recipe(crop=0.08, flip=0.5, jitter=0.4)
    if name == "gentle":
        return Recipe(fit="pad", augment=GENTLE)
    if name == "none":
        return Recipe(fit="pad")
    policy = cast(Policy, name)
    if small:
        return Recipe(fit="pad", policy=policy, augment=Augment(shift=GENTLE.shift))
    return Recipe(crop=0.08, flip=0.5, policy=policy)


def _longer_side(data: ListData) -> int:
    """Median of the training images; `LARGE` where none can be read, which shows later."""
    file, root = data.parts()["train"]
    try:
        paths = [line.path for line in read_list(file)]
    except (OSError, ValueError):
        return LARGE
    found = []
    for n in np.unique(np.linspace(0, max(len(paths) - 1, 0), LOOKED_AT, dtype=np.int64)):
        try:
            with Image.open(root / paths[n]) as image:  # its head alone
                found.append(max(image.size))
        except Exception:  # see `read_image`
            continue
    return int(np.median(found)) if found else LARGE


def recipe(data: ListData) -> Recipe:
    """Of data that are settled."""
    keys = data.augment.model_dump(exclude={"preset"})
    own = {key: keys.pop(key) for key in OWN}
    return Recipe(**own, augment=Augment(**keys))


def described(asked: ListData, found: ListData) -> str:
    """A line on what becomes of the images of lists, and which of it was chosen by their size."""
    augment = found.augment
    asks = (("image_size", asked.image_size), ("augment", asked.augment.preset))
    chosen = [f"data.{key}" for key, value in asks if value == "auto"]
    smooth = f", {found.interpolation}" if found.interpolation != "bilinear" else ""
    how = f"({augment.fit}{smooth}), augmented by `{augment.preset}`"
    line = f"images: {found.image_size} x {found.image_size} {how}"
    drawn = spelt(augment.model_dump(exclude={"preset", "fit"}))
    line += f" ({drawn})" if drawn else ""
    return line + (f"; {' and '.join(chosen)} chosen by the size of the images" if chosen else "")


def spelt(keys: Mapping[str, Any]) -> str:
    """Those keys of an augmentation that do something."""
    return ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in keys.items()
        if value != NEUTRAL.get(key, 0)
    )
