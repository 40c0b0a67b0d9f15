"""`oltr data`: check, pack and make data sets."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from oltr_ext.cli import commands, importing
from oltr_ext.cli.arguments import add_config, add_set
from oltr_ext.cli.values import how_many
from oltr_ext.config.paths import path_of


def add_commands(command: Callable[..., argparse.ArgumentParser], groups: Any) -> None:
    """Those within `oltr data`, made by the parser's `command`."""
    about = "check, pack and make data sets"
    group = groups.add_parser("data", help=about, description=f"{about.capitalize()}.")
    parts = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _check(command, parts)
    _pack(command, parts)
    _make(command, parts)
    importing.add_commands(command, parts)


def _check(command: Callable[..., argparse.ArgumentParser], parts: Any) -> None:
    sub = command(
        "check",
        commands.run_data_check,
        "check a data set of lists: missing and damaged files, counts, duplicates, labels",
        "  oltr data check my.yaml\n"
        "  oltr data check imagenet_lt --decode all --set data.root=/data/imagenet "
        "--set data.lists=/data/ImageNet_LT",
        within=parts,
    )
    add_config(sub)
    sub.add_argument(
        "--decode",
        type=how_many,
        default=200,
        metavar="N",
        help="images of each list to decode, or all; default: %(default)s",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    add_set(sub)


def _pack(command: Callable[..., argparse.ArgumentParser], parts: Any) -> None:
    sub = command(
        "pack",
        commands.run_data_pack,
        "put the images of lists into one file, decoded and in their final size: a pack",
        "  oltr data pack my.yaml\n"
        "  oltr data pack my.yaml --out mine.npz --set data.image_size=48",
        within=parts,
    )
    add_config(sub)
    sub.add_argument(
        "--out", type=path_of, metavar="FILE", help="the pack; default: CONFIG.npz, here"
    )
    add_set(sub)


def _make(command: Callable[..., argparse.ArgumentParser], parts: Any) -> None:
    sub = command(
        "make",
        commands.run_data_make,
        "render a larger data set into the cache ($OLTR_EXT_CACHE, else ~/.cache/oltr_ext)",
        "  oltr data make glyphs\n  oltr data make icons-large --source iconify-json-2.2.535.tgz",
        within=parts,
    )
    sub.add_argument(
        "name",
        metavar="NAME",
        help="glyphs (two sizes) or icons-large (pip install oltr_ext[data])",
    )
    sub.add_argument(
        "--source",
        type=path_of,
        metavar="PATH",
        help="folder of fonts or .deb files, or tarball of the npm package; default: fetched",
    )
