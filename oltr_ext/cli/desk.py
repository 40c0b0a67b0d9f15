"""`oltr desk`: a local page on which a person names what a run does not know."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from oltr_ext.cli.arguments import add_device, add_run
from oltr_ext.cli.saying import say
from oltr_ext.cli.values import port, positive
from oltr_ext.config.paths import path_of
from oltr_ext.desk import PORT


def add_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """`oltr desk`, made by the parser's `command`."""
    sub = command(
        "desk",
        run_desk,
        "name, merge, split and enroll what a run does not know among images, on a local page: "
        "pip install oltr_ext[web]",
        "  oltr desk runs/demo/oltr-plus photos/\n"
        "  oltr desk runs/demo/oltr-plus photos/ --port 0 --no-browser\n"
        "  oltr desk runs/demo/oltr-plus photos/ --export decided",
    )
    add_run(sub)
    sub.add_argument("folder", type=path_of, metavar="FOLDER", help="of images")
    sub.add_argument(
        "--out",
        type=path_of,
        metavar="FOLDER",
        help="of decisions; default: desk, in the run's folder",
    )
    sub.add_argument(
        "--port",
        type=port,
        default=PORT,
        metavar="N",
        help="of 127.0.0.1; 0: any; default: %(default)s",
    )
    sub.add_argument("--no-browser", action="store_true", help="only print the address")
    sub.add_argument(
        "--nearest", type=positive, default=3, metavar="K", help="known classes to name a group"
    )
    sub.add_argument(
        "--export",
        type=path_of,
        metavar="FOLDER",
        help="serve nothing: write what was decided as `path label` lists",
    )
    add_device(sub)


def run_desk(args: argparse.Namespace) -> int:
    from oltr_ext.desk import run

    where = {"out": args.out, "nearest": args.nearest, "device": args.device}
    if args.export is not None:
        for path in run.export_decisions(args.checkpoint, args.folder, args.export, **where):
            print(f"wrote  {path}")
        return 0
    browser = not args.no_browser
    run.run_desk(args.checkpoint, args.folder, port=args.port, browser=browser, say=say, **where)
    return 0
