"""What `enroll.py` trains: the base models, and the same method with the new images among the
training ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedded import OVERRIDES
from enroll_data import embedded_joined, glyphs_base, glyphs_joined, icons_joined
from runs import SLOW
from tune import chosen

from oltr_ext.config.loading import load_config
from oltr_ext.config.schema import Config


@dataclass(frozen=True)
class Set:
    name: str
    config: str  # packaged
    counts: tuple[int, ...]  # images to enrol that leave some to judge by


SETS = {
    "icons": Set("the icons", "icons", (1, 2, 5)),
    "embedded": Set("ImageNet features of the icons", "embeddings", (1, 2, 5)),
    "glyphs": Set("2,000 Chinese characters", "glyphs-2000", (1, 2, 5, 10)),
}


def base(name: str, method: str, seed: int, folder: Path) -> Config:
    """Of the model that classes join: it has not seen them."""
    if name == "embedded":
        return _config(name, method, seed, OVERRIDES)
    if name == "icons":
        return _config(name, method, seed, ())
    return _config(name, method, seed, (*SLOW, f"data.name={glyphs_base(folder)}"))


def joined(name: str, method: str, seed: int, folder: Path, count: int) -> Config:
    """Of the model that is trained again, with `count` images of each new class."""
    if name == "embedded":
        return _config(
            name, method, seed, (*OVERRIDES, f"data.root={embedded_joined(count, folder)}")
        )
    if name == "icons":
        file = icons_joined(count, folder)
        pack = ("data.kind=pack", f"data.name={file}", "data.shots=[30,10]")
        return _config(name, method, seed, pack)
    return _config(name, method, seed, (*SLOW, f"data.name={glyphs_joined(count, folder)}"))


def _config(name: str, method: str, seed: int, overrides: tuple[str, ...]) -> Config:
    config = SETS[name].config
    return load_config(config, [*overrides, *chosen(method, config), f"seed={seed}"], method=method)
