"""The command `oltr`. Exit codes: 0 done, 1 an error told in one line, 2 usage, 130 interrupted."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence

from oltr_ext.cli import commands, desk, importing
from oltr_ext.cli.commands import one_line
from oltr_ext.cli.parser import make_parser

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (usage errors exit from argparse with 2)."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack the letters of a class name
        sys.stdout.reconfigure(errors="backslashreplace")
    args = make_parser().parse_args(argv)
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
        print(f"oltr: {_unwritable(error, args) or one_line(error)}", file=sys.stderr)
        return 1


def _unwritable(error: Exception, args: argparse.Namespace) -> str:
    """What to do where a file could not be written; empty for any other error."""
    if not isinstance(error, OSError):
        return ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return f"no space left on the disk{where}"
    if error.errno in (errno.EACCES, errno.EROFS) and error.filename:
        folder = os.path.dirname(os.fsdecode(error.filename)) or "."
        if os.path.isdir(folder) and not os.access(folder, os.W_OK):
            other = ": choose another place with --out" if "out" in args else ""
            return f"cannot write to {folder}{other}"
    return ""


def _interrupted(args: argparse.Namespace) -> str:
    resumable = (
        commands.run_demo,
        commands.run_train,
        commands.run_embed,
        commands.run_discover,
        importing.run_import,
        desk.run_desk,
    )
    if args.run not in resumable:
        return "interrupted"
    again = "the same command"
    if getattr(args, "fresh", False):
        again += " without --fresh"
    return f"interrupted; {again} goes on from here"
