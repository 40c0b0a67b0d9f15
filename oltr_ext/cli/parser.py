"""The words of the command `oltr`, and their help."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from oltr_ext._version import __version__
from oltr_ext.cli import classes, commands, data, desk, service
from oltr_ext.cli.arguments import (
    add_config,
    add_device,
    add_images,
    add_method,
    add_observations,
    add_run,
    add_set,
    add_stream,
)
from oltr_ext.cli.values import expectation, positive, share
from oltr_ext.config.methods import DEMO
from oltr_ext.config.paths import expanded, path_of


def make_parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    whole = argparse.ArgumentParser(
        prog="oltr", description="Open long-tailed recognition: train, evaluate, predict, explain."
    )
    whole.add_argument("--version", action="version", version=f"oltr_ext {__version__}")
    groups = whole.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(
        name: str, run: object, about: str, examples: str, within: Any = groups
    ) -> argparse.ArgumentParser:
        sub: argparse.ArgumentParser = within.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=f"examples:\n{examples}",
            parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run, usage=sub.error)
        return sub

    _demo(command)
    _train(command)
    _config(command)
    _eval(command)
    _predict(command)
    classes.add_commands(command)
    service.add_command(command)
    _discover(command)
    desk.add_command(command)
    _export(command)
    data.add_commands(command, groups)
    _embed(command)
    _info(command)
    _methods(command)
    return whole


def _demo(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "demo",
        commands.run_demo,
        "train methods on the embedded icons, evaluate them, write a report",
        "  oltr demo\n  oltr demo --seed 3 --out runs/demo3 --methods plain crt oltr",
    )
    sub.add_argument(
        "--out",
        type=path_of,
        default=Path("runs/demo"),
        metavar="FOLDER",
        help="of the runs and the report; default: %(default)s",
    )
    sub.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the training; default: %(default)s"
    )
    sub.add_argument(
        "--methods",
        nargs="+",
        default=list(DEMO),
        metavar="NAME",
        help=f"see oltr methods; default: {' '.join(DEMO)}",
    )
    sub.add_argument("--fresh", action="store_true", help="train again what is already there")
    add_set(sub)


def _train(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "train",
        commands.run_train,
        "train by a configuration, or go on with an interrupted run",
        "  oltr train my.yaml\n"
        "  oltr train icons --method oltr\n"
        "  oltr train my.yaml --method crt --set epochs=90 --set amp=bf16\n"
        "  oltr train icons --method plain --out runs/plain\n"
        "  oltr train icons --method tau-norm --stage1 runs/plain\n"
        "  oltr train imagenet_lt --set data.root=/data/imagenet "
        "--set data.lists=/data/ImageNet_LT\n"
        "  torchrun --nproc-per-node 4 -m oltr_ext train imagenet_lt --out runs/on_four_gpus",
    )
    add_config(sub)
    add_method(sub)
    sub.add_argument(
        "--out",
        type=path_of,
        metavar="FOLDER",
        help="of the run; default: runs/CONFIG, with --method runs/CONFIG_METHOD",
    )
    sub.add_argument(
        "--stage1",
        type=path_of,
        metavar="RUN",
        help="take stage 1 from a finished run of it alone: its folder, or its model",
    )
    add_set(sub)
    again = sub.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", default=True, help="go on with the run in --out (default)"
    )
    again.add_argument("--fresh", action="store_true", help="start again, removing the old run")


def _config(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "config",
        commands.run_config,
        "print a configuration with every key: its own, the method's, the defaults",
        "  oltr config icons --method oltr-plus\n  oltr config my.yaml --set amp=bf16 > whole.yaml",
    )
    add_config(sub)
    add_method(sub)
    add_set(sub)


def _eval(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "eval",
        commands.run_eval,
        "evaluate trained models on their test images, closed and open, side by side",
        "  oltr eval runs/demo/oltr\n"
        "  oltr eval runs/icons_plain runs/icons_crt runs/icons_oltr\n"
        "  oltr eval runs/icons_oltr-plus --test-prior val\n"
        "  oltr eval runs/mine --costs costs.csv\n"
        "  oltr eval runs/mine --observations observations.csv\n"
        "  oltr eval runs/mine/best.safetensors --out judged --set data.root=/data/moved",
    )
    add_run(sub, "checkpoints", nargs="+")
    sub.add_argument(
        "--out",
        type=path_of,
        metavar="FOLDER",
        help="of the report; default: the run's, of several the one that they are in; with "
        "--test-prior a folder in it",
    )
    sub.add_argument(
        "--name",
        action="append",
        metavar="NAME",
        help="what to call a run, in turn for each; default: its folder",
    )
    sub.add_argument(
        "--test-prior",
        type=expectation,
        metavar="WHAT",
        help="judge as if trained with this test_prior, threshold included: balanced, val, or a "
        "share of the training's tail; the run stays as it is",
    )
    sub.add_argument(
        "--costs",
        type=path_of,
        metavar="FILE",
        help="what each answer (column) to each true class (row) costs, unknown among both: say "
        "the expected cost, and the threshold that makes it least on validation images",
    )
    add_observations(sub, "a table with columns path and observation: judge them as one each too")
    sub.add_argument(
        "--openood",
        type=path_of,
        metavar="FOLDER",
        help="write each image's score as OpenOOD does: scores/NAME.npz; of several runs, each in "
        "a folder with its name",
    )
    sub.add_argument(
        "--json", action="store_true", help="print all numbers, a line a model; write no report"
    )
    add_set(sub)
    add_stream(sub)
    add_device(sub)


def _predict(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "predict",
        commands.run_predict,
        "label images or embeddings, or say that they are unknown",
        "  oltr predict runs/demo/oltr house.png cat.png\n"
        "  oltr predict runs/demo/oltr photos/ --json\n"
        "  oltr predict runs/demo/oltr house.png --set 0.1\n"
        "  oltr predict runs/mine photos/ --observations observations.csv\n"
        "  oltr predict runs/on_embeddings features.npy",
    )
    add_run(sub)
    add_images(sub)
    sub.add_argument("--json", action="store_true", help="one JSON object a line")
    add_observations(
        sub, "a table with columns path and observation, or folders: one answer for each of them"
    )
    sub.add_argument(
        "--nearest", type=positive, metavar="K", help="known classes to name; default: 3"
    )
    sub.add_argument(
        "--set",
        type=share,
        metavar="ALPHA",
        help="name all classes that each may be of, so that at most this share of images of known "
        "classes lacks its own: 0.1",
    )
    sub.add_argument(
        "--set-method",
        choices=("marginal", "pas", "shots", "class", "interp"),
        help="over what to miss that share: see oltr_ext/serve/README.md; default: shots",
    )
    add_stream(sub)
    add_device(sub)


def _discover(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "discover",
        commands.run_discover,
        "group what a run rejects among images, for a person to name; goes on when killed",
        "  oltr discover runs/demo/oltr-plus photos/\n"
        "  oltr discover runs/mine *.png --out found\n"
        "  oltr discover runs/on_embeddings features.npy",
    )
    add_run(sub)
    add_images(sub)
    sub.add_argument(
        "--out",
        type=path_of,
        metavar="FOLDER",
        help="of the groups; default: discovered, in the run's folder",
    )
    sub.add_argument(
        "--nearest", type=positive, default=3, metavar="K", help="known classes to name a group"
    )
    add_device(sub)


def _export(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "export",
        commands.run_export,
        "write a trained model as one program, for use without this package's configurations, and "
        "say what the target needs",
        "  oltr export runs/demo/oltr-plus\n"
        "  oltr export runs/demo/oltr-plus --format aoti --any-size    # see examples/cpp\n"
        "  oltr export runs/demo/oltr-plus --format onnx\n"
        "  OLTR_EXT_BACKEND=reference oltr export runs/demo/oltr-plus --out plain_torch.pt2",
    )
    add_run(sub)
    sub.add_argument(
        "--format",
        choices=["torch", "aoti", "onnx"],
        default="torch",
        help="a program of torch.export; compiled by AOTInductor for libtorch, without Python; or "
        "of ONNX (pip install oltr_ext[onnx]); default: %(default)s",
    )
    sub.add_argument(
        "--any-size",
        action="store_true",
        help="the program takes images as large as they are, in place of the network's squares",
    )
    sub.add_argument(
        "--out",
        type=path_of,
        metavar="FILE",
        help="of the program; default: the model's, .pt2, .aoti.pt2 or .onnx",
    )


def _embed(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "embed",
        commands.run_embed,
        "write the features of a configuration's images, to train heads on; goes on when killed",
        "  oltr embed runs/mine --out embeddings\n"
        "  oltr embed imagenet_lt --out embeddings --set data.root=/data/imagenet \\\n"
        "      --set model.backbone=torchvision:resnet50 --set model.weights=DEFAULT\n"
        "  oltr train embeddings --method oltr-plus --set data.root=embeddings",
    )
    sub.add_argument(
        "source",
        type=expanded,
        metavar="CONFIG|RUN",
        help="a configuration, or a run: its folder or its model",
    )
    sub.add_argument(
        "--out", type=path_of, required=True, metavar="FOLDER", help="of the embeddings"
    )
    sub.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the files; default: %(default)s",
    )
    add_set(sub)
    add_device(sub)


def _info(command: Callable[..., argparse.ArgumentParser]) -> None:
    sub = command(
        "info",
        commands.run_info,
        "show versions, libraries, CPU features and backends",
        "  oltr info",
    )
    sub.add_argument("--json", action="store_true", help="print JSON")


def _methods(command: Callable[..., argparse.ArgumentParser]) -> None:
    command(
        "methods",
        commands.run_methods,
        "list the methods on offer, with their papers and what each changes",
        "  oltr methods",
    )
