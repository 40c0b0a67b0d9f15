"""The command `oltr`. Exit codes: 0 done, 1 an error told in one line, 2 usage, 130 interrupted."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oltr_ext._version import __version__
from oltr_ext.engine.methods import DEMO, METHODS

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (usage errors exit from argparse with 2)."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack the letters of a class name
        sys.stdout.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        print(f"\noltr: {_interrupted(args)}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        if args.debug:
            raise
        print(f"oltr: {_one_line(error)}", file=sys.stderr)
        return 1


def _one_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    if "Original Traceback" in text:  # of a loader process, with the message at its end
        text = (re.findall(r"^[\w.]+Error: (.+)", text, re.MULTILINE) or text.splitlines())[-1]
    return text.splitlines()[0]


def _interrupted(args: argparse.Namespace) -> str:
    if args.run not in (_demo, _train, _embed):
        return "interrupted"
    again = "the same command"
    if getattr(args, "fresh", False):
        again += " without --fresh"
    return f"interrupted; {again} goes on from here"


def _demo(args: argparse.Namespace) -> int:
    from oltr_ext.engine.demo import demo

    demo(
        args.out,
        methods=args.methods,
        seed=args.seed,
        fresh=args.fresh,
        overrides=args.set,
        say=_say,
    )
    return 0


def _train(args: argparse.Namespace) -> int:
    from oltr_ext.engine import distributed
    from oltr_ext.engine.config import load_config
    from oltr_ext.engine.train import train

    with distributed.joined():
        config = load_config(args.config, args.set, method=args.method)
        name = "_".join(filter(None, (Path(args.config).stem, args.method)))
        out = args.out or Path("runs") / name
        path = train(config, out, resume=not args.fresh, stage1=args.stage1, say=_tell)
        if distributed.lead():
            print(f"model  {path}")
    return 0


def _config(args: argparse.Namespace) -> int:
    import yaml

    from oltr_ext.engine.config import load_config

    config = load_config(args.config, args.set, method=args.method)
    print(
        yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end=""
    )
    return 0


def _eval(args: argparse.Namespace) -> int:
    from oltr_ext.engine.assess import REPORT, assess, report, table
    from oltr_ext.engine.predict import load_trained

    trained = load_trained(args.checkpoint, device=args.device, overrides=args.set)
    name = args.name or trained.path.parent.name or trained.path.stem
    result = assess(trained, name=name)
    for line in result.splits.problems():
        print(f"oltr: {line}", file=sys.stderr)
    if args.json:
        print(json.dumps(result.summary))
        return 0
    print(table([result]))
    files = report([result], (args.out or trained.path.parent) / REPORT)
    print(f"\nreport  {files.html}\nnumbers {files.json}")
    return 0


def _predict(args: argparse.Namespace) -> int:
    from oltr_ext.engine.predict import load_trained, predict_images
    from oltr_ext.nn import OLTRHead

    trained = load_trained(args.checkpoint, device=args.device)
    by = "distance" if isinstance(trained.model.head, OLTRHead) else "probability"
    bad: list[Exception] = []
    on_error = None if args.debug else bad.append
    for found in predict_images(trained, args.images, nearest=args.nearest, on_error=on_error):
        if args.json:
            print(json.dumps(dataclasses.asdict(found)))
            continue
        near = ", ".join(f"{name} {value:.3g}" for name, value in found.nearest)
        label = found.label or "unknown"
        print(f"{found.path}: {label}  {found.score} {found.confidence:.3g}  by {by}: {near}")
    for error in bad:
        print(f"oltr: {_one_line(error)}", file=sys.stderr)
    return 1 if bad else 0


def _data_check(args: argparse.Namespace) -> int:
    from oltr_ext.engine.check import check_data, check_table
    from oltr_ext.engine.config import load_config
    from oltr_ext.engine.schema import ListData

    data = load_config(args.config, args.set).data
    if not isinstance(data, ListData):
        raise ValueError(f"{args.config}: data.kind is {data.kind}; only lists have files to check")
    found = check_data(data, decode=args.decode)
    print(json.dumps(dataclasses.asdict(found)) if args.json else check_table(found))
    return 1 if found.problems else 0


def _data_make(args: argparse.Namespace) -> int:
    from oltr_ext.data.make import make

    make(args.name, args.source, say=_say)
    return 0


def _embed(args: argparse.Namespace) -> int:
    from oltr_ext.engine.embed import embed

    path = embed(args.source, args.out, overrides=args.set, dtype=args.dtype, device=args.device)
    print(f"embeddings  {path.parent}")
    return 0


def _info(args: argparse.Namespace) -> int:
    from oltr_ext.info import main as info

    return info(["--json"] if args.json else [])


def _methods(args: argparse.Namespace) -> int:
    rows = [("method", "paper", "what it changes", "command")]
    rows += [
        (name, method.paper, method.changes, f"oltr train icons --method {name}")
        for name, method in METHODS.items()
    ]
    width = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(w) for cell, w in zip(row, width, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def _say(line: str) -> None:
    from tqdm import tqdm

    tqdm.write(line)  # above a progress bar, where there is one
    sys.stdout.flush()


def _tell(line: str) -> None:
    """How it goes, beside what comes out of it."""
    from tqdm import tqdm

    tqdm.write(line, file=sys.stderr)
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="oltr", description="Open long-tailed recognition: train, evaluate, predict, explain."
    )
    parser.add_argument("--version", action="version", version=f"oltr_ext {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, run: object, about: str, examples: str, within: Any = commands
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = within.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=f"examples:\n{examples}",
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    sub = command(
        "demo",
        _demo,
        "train methods on the embedded icons, evaluate them, write a report",
        "  oltr demo\n  oltr demo --seed 3 --out runs/demo3 --methods plain crt oltr",
    )
    sub.add_argument("--out", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    sub.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    sub.add_argument(
        "--methods",
        nargs="+",
        default=list(DEMO),
        metavar="NAME",
        help=f"see oltr methods; default: {' '.join(DEMO)}",
    )
    sub.add_argument("--fresh", action="store_true", help="train again what is already there")
    _add_set(sub)

    sub = command(
        "train",
        _train,
        "train by a configuration, or go on with an interrupted run",
        "  oltr train icons --method oltr\n"
        "  oltr train my.yaml --method crt --set stage1.epochs=90 --set amp=bf16\n"
        "  oltr train icons --out runs/plain\n"
        "  oltr train icons --method tau-norm --stage1 runs/plain\n"
        "  oltr train imagenet_lt --set data.root=/data/imagenet "
        "--set data.lists=/data/ImageNet_LT\n"
        "  torchrun --nproc-per-node 4 -m oltr_ext train imagenet_lt --out runs/on_four_gpus",
    )
    _add_config(sub)
    sub.add_argument("--method", metavar="NAME", help="see oltr methods; default: as in the file")
    sub.add_argument("--out", type=Path, help="folder of the run; default: runs/CONFIG_METHOD")
    sub.add_argument(
        "--stage1",
        type=Path,
        metavar="RUN",
        help="take stage 1 from a finished run of it alone: its folder or model",
    )
    _add_set(sub)
    again = sub.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", default=True, help="go on with the run in --out (default)"
    )
    again.add_argument("--fresh", action="store_true", help="start again, removing the old run")

    sub = command(
        "config",
        _config,
        "print a configuration with every key: its own, the method's, the defaults",
        "  oltr config icons --method oltr-plus\n  oltr config my.yaml --set amp=bf16 > whole.yaml",
    )
    _add_config(sub)
    sub.add_argument("--method", metavar="NAME", help="see oltr methods; default: as in the file")
    _add_set(sub)

    sub = command(
        "eval",
        _eval,
        "evaluate a trained model on its test images, closed and open",
        "  oltr eval runs/demo/oltr\n"
        "  oltr eval runs/mine/best.safetensors --out judged --set data.root=/data/moved",
    )
    sub.add_argument("checkpoint", type=Path, help="a checkpoint, or the folder of a run")
    sub.add_argument("--out", type=Path, help="folder of the report; default: the checkpoint's")
    sub.add_argument("--name", help="what to call the model; default: its folder")
    sub.add_argument("--json", action="store_true", help="print all numbers, write no report")
    _add_set(sub)
    sub.add_argument("--device", default="auto", help="default: %(default)s")

    sub = command(
        "predict",
        _predict,
        "label images or embeddings, or say that they are unknown",
        "  oltr predict runs/demo/oltr house.png cat.png\n"
        "  oltr predict runs/demo/oltr *.png --json\n"
        "  oltr predict runs/on_embeddings features.npy",
    )
    sub.add_argument("checkpoint", type=Path, help="a checkpoint, or the folder of a run")
    sub.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image files; or .npy files of embeddings (N, D)"
    )
    sub.add_argument("--json", action="store_true", help="one JSON object a line")
    sub.add_argument(
        "--nearest", type=_positive, default=3, metavar="K", help="known classes to name"
    )
    sub.add_argument("--device", default="auto", help="default: %(default)s")

    about = "check and make data sets"
    group = commands.add_parser("data", help=about, description=f"{about.capitalize()}.")
    parts = group.add_subparsers(title="commands", required=True, metavar="COMMAND")
    sub = command(
        "check",
        _data_check,
        "check a data set of lists: missing and damaged files, counts, duplicates, labels",
        "  oltr data check my.yaml\n"
        "  oltr data check imagenet_lt --decode all --set data.root=/data/imagenet "
        "--set data.lists=/data/ImageNet_LT",
        within=parts,
    )
    _add_config(sub)
    sub.add_argument(
        "--decode",
        type=_how_many,
        default=200,
        metavar="N",
        help="images of each list to decode, or all; default: %(default)s",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    _add_set(sub)

    sub = command(
        "make",
        _data_make,
        "render a larger data set into the cache ($OLTR_EXT_CACHE, else ~/.cache/oltr_ext)",
        "  oltr data make glyphs\n  oltr data make icons-large --source iconify-json-2.2.535.tgz",
        within=parts,
    )
    sub.add_argument("name", metavar="NAME", help="glyphs (two sizes) or icons-large")
    sub.add_argument(
        "--source",
        type=Path,
        help="folder of fonts or .deb files, or tarball of the npm package; default: fetched",
    )

    sub = command(
        "embed",
        _embed,
        "write the features of a configuration's images, to train heads on; goes on when killed",
        "  oltr embed runs/mine --out embeddings\n"
        "  oltr embed imagenet_lt --out embeddings --set data.root=/data/imagenet \\\n"
        "      --set model.backbone=torchvision:resnet50 --set model.weights=DEFAULT\n"
        "  oltr train embeddings --method oltr-plus --set data.root=embeddings",
    )
    sub.add_argument(
        "source", metavar="CONFIG_OR_CHECKPOINT", help="a configuration, a checkpoint or a run"
    )
    sub.add_argument("--out", type=Path, required=True, help="folder of the embeddings")
    sub.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    _add_set(sub)
    sub.add_argument("--device", default="auto", help="default: %(default)s")

    sub = command(
        "info", _info, "show versions, libraries, CPU features and backends", "  oltr info"
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    command(
        "methods",
        _methods,
        "list the methods on offer, with their papers and what each changes",
        "  oltr methods",
    )
    return parser


def _add_config(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("config", help="a YAML file, or the name of a packaged configuration")


def _add_set(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the configuration by its dotted path, after the method has changed "
        "it; may be repeated",
    )


def _how_many(text: str) -> int | None:
    """None is all."""
    return None if text == "all" else _positive(text)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main())
