"""Arguments that several commands have, each in one name and in the same words."""

from __future__ import annotations

import argparse
from typing import Any

from oltr_ext.config.methods import DEFAULT
from oltr_ext.config.paths import expanded, path_of

__all__ = [
    "add_config",
    "add_device",
    "add_images",
    "add_method",
    "add_observations",
    "add_run",
    "add_set",
    "add_stream",
]


def add_run(sub: argparse.ArgumentParser, dest: str = "checkpoint", **how: Any) -> None:
    """What training left, whichever command reads it."""
    about = "folder of a run, or its model"
    sub.add_argument(dest, type=path_of, metavar="RUN", help=about, **how)


def add_images(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "images",
        nargs="+",
        type=expanded,
        metavar="IMAGE",
        help="images, folders of them (links to folders in these are passed over), or .npy files "
        "of embeddings (N, D)",
    )


def add_device(sub: argparse.ArgumentParser) -> None:
    about = "cpu, cuda or cuda:N; default: %(default)s, a GPU where there is one"
    sub.add_argument("--device", default="auto", metavar="DEVICE", help=about)


def add_config(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "config",
        type=expanded,
        metavar="CONFIG",
        help="a YAML file, or the name of a packaged configuration",
    )


def add_method(sub: argparse.ArgumentParser) -> None:
    about = f"see oltr methods; default: what the configuration says; {DEFAULT} where it says none"
    sub.add_argument("--method", metavar="NAME", help=about)


def add_set(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the configuration by its dotted path, after the method has changed "
        "it; may be repeated",
    )


def add_stream(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--stream",
        action="store_true",
        help="leave a memory's class banks in the file and read them at each answer: for models "
        "larger than memory",
    )


def add_observations(sub: argparse.ArgumentParser, about: str) -> None:
    sub.add_argument("--observations", type=expanded, metavar="FILE", help=about)
    sub.add_argument(
        "--by",
        choices=("embeddings", "scores"),
        help="whose mean an observation goes by; default: embeddings",
    )
