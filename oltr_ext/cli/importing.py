"""`oltr data from-...`: sets as people have them, made lists that `oltr train` takes."""

from __future__ import annotations

import argparse
import math
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oltr_ext.cli.sources import Sources, sources_of
from oltr_ext.config.paths import path_of

if TYPE_CHECKING:
    from oltr_ext.data.importing import Notes, Record

NEVER = {"run", "usage", "read", "root_of", "out", "debug", "workers", "val", "test", "seed",
         "open", "deal_anew", "quick"}  # fmt: skip
"""Arguments that a reader does not see, for the plan of the import has them."""


def add_commands(command: Callable[..., argparse.ArgumentParser], parts: Any) -> None:
    """A command for each format, made by the parser's `command` within `oltr data`."""
    sub = command(
        "from-folder",
        run_import,
        "make lists of images in folders, each class a folder",
        "  oltr data from-folder photos --out birds\n"
        "  oltr train birds/data.yaml --out runs/birds\n"
        "  oltr data from-folder photos --out birds --open 10 --test 5\n"
        "  oltr data from-folder photos --out birds --class-by leaf --open magpie 'carrion crow'",
        within=parts,
    )
    sub.add_argument("source", type=path_of, metavar="FOLDER", help="of a folder for each class")
    sub.add_argument(
        "--class-by",
        choices=("top", "leaf", "path"),
        default="top",
        help="of nested folders the topmost names the class, the innermost, or all of them; "
        "default: %(default)s",
    )
    sub.add_argument(
        "--observation-folders",
        action="store_true",
        help="a folder within that of a class holds the photos of one observation",
    )
    sub.add_argument("--follow-links", action="store_true", help="follow links to folders too")
    _add_plan(sub, read=_folder, root_of=lambda args: args.source)

    sub = command(
        "from-csv",
        run_import,
        "make lists of images named in a table",
        "  oltr data from-csv labels.csv --out birds\n"
        "  oltr data from-csv FungiTastic.csv --out fungi --root images --path-column filename \\\n"
        "      --label-column species --observation-column observationID\n"
        "  oltr data from-csv traps.csv --out traps --group-column location --split-column split",
        within=parts,
    )
    sub.add_argument("source", type=path_of, metavar="FILE", help="its first row names the columns")
    _add_root(sub, "the file's folder")
    usual = {
        "path": "path, file, ...",
        "label": "label, class, ...",
        "observation": "observation, if there is one",
    }
    for what in ("path", "label", "observation", "group", "split"):
        sub.add_argument(
            f"--{what}-column",
            metavar="NAME",
            help=f"default: {usual.get(what, 'there is none')}",
        )
    sub.add_argument(
        "--suffix", default="", metavar="SUFFIX", help="put after each path, such as .jpg"
    )
    sub.add_argument("--delimiter", metavar="CHARACTER", help="default: what the head tells")
    _add_plan(sub, read=_csv, root_of=lambda args: args.root or args.source.parent)

    sub = command(
        "from-json",
        run_import,
        "make lists of images named in JSON as COCO and iNaturalist have it",
        "  oltr data from-json instances.json --out animals --root images\n"
        "  oltr data from-json train=train2018.json val=val2018.json --out inat --root data\n"
        "  oltr data from-json traps.json --out traps --observation-key seq_id "
        "--group-key location",
        within=parts,
    )
    _add_sources(sub, "FILE")
    _add_root(sub, "the folder of the first file")
    _add_keys(sub, "key", "of an image")
    _add_plan(sub, read=_json, root_of=lambda args: args.root or args.source[0][1].parent)

    sub = command(
        "from-tar",
        run_import,
        "make lists of the images in tar files as WebDataset has them",
        "  oltr data from-tar shards/*.tar --out birds\n"
        "  oltr data from-tar train=train.tar test=test.tar --out birds --names classes.txt",
        within=parts,
    )
    _add_sources(sub, "SHARD")
    sub.add_argument("--label-part", metavar="SUFFIX", help="default: cls, label, txt or json")
    sub.add_argument("--label-key", default="label", metavar="KEY", help="of the part in JSON")
    sub.add_argument(
        "--names", type=path_of, metavar="FILE", help="of classes that are numbers, one a line"
    )
    _add_keys(sub, "key", "of the part in JSON")
    _add_plan(sub, read=_tar, root_of=lambda args: None)

    sub = command(
        "from-arrow",
        run_import,
        "make lists of the images in a data set of Hugging Face on disk, or in Parquet files: "
        "pip install oltr_ext[arrow]",
        "  oltr data from-arrow saved_to_disk/ --out birds\n"
        "  oltr data from-arrow train=train-*.parquet --out birds --label-column species",
        within=parts,
    )
    _add_sources(sub, "PATH")
    for what in ("image", "label"):
        sub.add_argument(f"--{what}-column", metavar="NAME", help="default: what it usually is")
    _add_keys(sub, "column", "if there is one")
    _add_plan(sub, read=_arrow, root_of=lambda args: None)

    sub = command(
        "from-cifar",
        run_cifar,
        "make CIFAR-10-LT or CIFAR-100-LT of torchvision's files, with open sets",
        "  oltr data from-cifar cifar100 --root data --out cifar100_lt\n"
        "  oltr data from-cifar cifar10 --root data --out cifar10_lt --imbalance step --factor 10 "
        "\\\n      --open cifar100 svhn textures places",
        within=parts,
    )
    sub.add_argument(
        "source", choices=("cifar10", "cifar100"), metavar="SET", help="cifar10 or cifar100"
    )
    sub.add_argument(
        "--root", type=path_of, required=True, metavar="FOLDER", help="of torchvision's files"
    )
    _add_out(sub)
    sub.add_argument(
        "--imbalance",
        choices=("exp", "step"),
        default="exp",
        help="sizes of classes fall by a factor, or half of them are small; default: %(default)s",
    )
    sub.add_argument(
        "--factor",
        type=float,
        default=100.0,
        metavar="N",
        help="the largest class to the smallest; default: %(default)g",
    )
    sub.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the field's is %(default)s, the default"
    )
    sub.add_argument(
        "--val",
        type=_val_or_test,
        default=0.1,
        metavar="SHARE",
        help="of the kept images to hold out; test: validate on the test images; "
        "default: %(default)s",
    )
    sub.add_argument(
        "--open",
        nargs="+",
        default=(),
        metavar="SET",
        help="as unknown: cifar10, cifar100, svhn, textures, places",
    )


def run_cifar(args: argparse.Namespace) -> int:
    from oltr_ext.engine.importing import import_cifar

    made = import_cifar(
        args.source,
        args.root,
        args.out,
        kind=args.imbalance,
        factor=args.factor,
        seed=args.seed,
        val=args.val,
        open_sets=args.open,
    )
    _tell_of(made.folder, made.words)
    return 0


def run_import(args: argparse.Namespace) -> int:
    from oltr_ext.data.importing import Plan
    from oltr_ext.engine.importing import import_set

    asked = {k: v for k, v in vars(args).items() if k not in NEVER}
    plan = Plan(args.val, args.test, args.seed, args.open, not args.deal_anew, not args.quick)
    made = import_set(
        lambda notes: args.read(args, notes),
        args.out,
        root=args.root_of(args),
        about={"read": args.read.__name__.lstrip("_"), **_jsonable(asked)},
        plan=plan,
        workers=args.workers,
    )
    _tell_of(made.folder, made.words)
    return 0


def _tell_of(folder: Path, words: list[str]) -> None:
    for line in words:
        print(line)
    name = folder.name
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())
    print(f"\nlists   {folder}\nreport  {folder / 'report.png'}")
    command = ["oltr", "train", str(folder / "data.yaml"), "--out", f"runs/{name}"]
    print(f"train   {shlex.join(command)}")


def _folder(args: argparse.Namespace, notes: Notes) -> Iterator[Record]:
    from oltr_ext.data.importing import read_folder

    out, source = (Path(os.path.realpath(path)) for path in (args.out, args.source))
    if out.is_relative_to(source):  # what it writes would be images of a class the next time
        raise ValueError(f"--out {args.out} lies in {args.source}: choose a folder outside")
    return read_folder(
        args.source,
        notes,
        class_by=args.class_by,
        observations=args.observation_folders,
        follow_links=args.follow_links,
        given=not args.deal_anew,
    )


def _csv(args: argparse.Namespace, notes: Notes) -> Iterator[Record]:
    from oltr_ext.data.importing import read_table

    return read_table(
        args.source,
        notes,
        root=args.root,
        path=args.path_column,
        label=args.label_column,
        observation=args.observation_column,
        group=args.group_column,
        split=None if args.deal_anew else args.split_column,
        suffix=args.suffix,
        delimiter=args.delimiter,
    )


def _json(args: argparse.Namespace, notes: Notes) -> Iterator[Record]:
    from oltr_ext.data.importing import read_coco

    return read_coco(
        args.source,
        notes,
        root=args.root,
        observation=args.observation_key,
        group=args.group_key,
    )


def _tar(args: argparse.Namespace, notes: Notes) -> Iterator[Record]:
    from oltr_ext.data.importing import read_shards
    from oltr_ext.data.lists import read_names

    return read_shards(
        args.source,
        notes,
        label=args.label_part,
        label_key=args.label_key,
        observation=args.observation_key,
        group=args.group_key,
        names=None if args.names is None else read_names(args.names),
    )


def _arrow(args: argparse.Namespace, notes: Notes) -> Iterator[Record]:
    from oltr_ext.data.importing import read_arrow

    return read_arrow(
        args.source,
        notes,
        image=args.image_column,
        label=args.label_column,
        observation=args.observation_column,
        group=args.group_column,
    )


def _add_sources(sub: argparse.ArgumentParser, metavar: str) -> None:
    sub.add_argument(
        "source",
        nargs="+",
        type=sources_of,
        action=Sources,
        metavar=f"[SPLIT=]{metavar}",
        help="train=, val= or test= says of which split it is",
    )


def _add_keys(sub: argparse.ArgumentParser, kind: str, about: str) -> None:
    for what in ("observation", "group"):
        sub.add_argument(f"--{what}-{kind}", metavar="NAME", help=about)


def _add_root(sub: argparse.ArgumentParser, default: str) -> None:
    sub.add_argument(
        "--root", type=path_of, metavar="FOLDER", help=f"of the images; default: {default}"
    )


def _add_out(sub: argparse.ArgumentParser) -> None:
    about = "a new one, for lists, names and report"
    sub.add_argument("--out", type=path_of, required=True, metavar="FOLDER", help=about)


def _add_plan(sub: argparse.ArgumentParser, *, read: object, root_of: object) -> None:
    """What every one of them has."""
    sub.set_defaults(read=read, root_of=root_of)
    _add_out(sub)
    for part, default in (("val", 0.1), ("test", 0.2)):
        sub.add_argument(
            f"--{part}",
            type=_share,
            default=default,
            metavar="SHARE",
            help="below 1 a share of each class, else so many images of it"
            f"{'; 0: none' if part == 'test' else ''}; default: %(default)s",
        )
    sub.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the deal; default: %(default)s"
    )
    sub.add_argument(
        "--open",
        nargs="+",
        default=(),
        action=_Open,
        metavar="NAME",
        help="classes to hold out as unknown, by name; or a number of them, which the seed draws",
    )
    sub.add_argument(
        "--deal-anew", action="store_true", help="whatever splits the source has, deal all anew"
    )
    sub.add_argument(
        "--quick", action="store_true", help="read the head of each image, do not decode all of it"
    )
    sub.add_argument(
        "--workers",
        type=int,
        default=4,
        metavar="N",
        help="threads that read; default: %(default)s",
    )


class _Open(argparse.Action):
    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        one = len(values) == 1 and values[0].isdecimal()
        setattr(namespace, self.dest, int(values[0]) if one else tuple(values))


def _share(text: str) -> float | int:
    value = float(text)
    if not 0 <= value < math.inf or (value >= 1 and value != int(value)):
        raise argparse.ArgumentTypeError(f"must be a share below 1 or a whole number, got {text}")
    return int(value) if value >= 1 else value


def _val_or_test(text: str) -> float | str:
    if text == "test":
        return text
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be test or a share in (0, 1), got {text}")
    return value


def _jsonable(asked: dict[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, os.PathLike):
            return os.path.abspath(value)
        return [plain(each) for each in value] if isinstance(value, list | tuple) else value

    return {key: plain(value) for key, value in asked.items()}
