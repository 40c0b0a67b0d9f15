"""The command `oltr`. Exit codes: 0 done, 1 an error told in one line, 2 usage, 130 interrupted.

A reader that has had enough of the output, such as `head`, is no error of a command that does
nothing but tell; one that had more to do was stopped, which is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from oltr_ext.cli import classes, commands, desk, importing
from oltr_ext.cli.commands import one_line
from oltr_ext.cli.parser import make_parser

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (usage errors exit from argparse with 2)."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack the letters of a class name
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _run(argv)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _let_go(stream)


def _run(argv: Sequence[str] | None) -> int:
    """As `main`; what the command printed has been written, or the error told."""
    args = argparse.Namespace(run=None, debug=False)
    code, ended = 0, False
    try:
        try:
            args = make_parser().parse_args(argv)
            code = int(args.run(args))
        except SystemExit:  # of argparse, after --help, --version and usage errors
            _flush()
            raise
        ended = True
        _flush()
        return code
    except KeyboardInterrupt:
        _complain(f"\noltr: {_goes_on('interrupted', args)}")
        return 130
    except BrokenPipeError:
        if ended or _tells_alone(args):
            return code
        _complain(f"oltr: {_goes_on('stopped, for the reader of its output has gone', args)}")
        return 1
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        if args.debug:
            raise
        _complain(f"oltr: {_unwritable(error, args) or one_line(error)}")
        return 1


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _complain(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads that either
        print(line, file=sys.stderr)


def _let_go(stream: TextIO | None) -> None:
    """See that Python's own flush at exit does not fail, which would be exit code 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _tells_alone(args: argparse.Namespace) -> bool:
    """Whether a command leaves nothing behind, or had left it before it said anything."""
    tells = (
        None,  # --help and --version
        classes.run_classes,
        commands.run_config,
        commands.run_data_check,
        commands.run_info,
        commands.run_methods,
        commands.run_predict,
    )
    return args.run in tells or (args.run == commands.run_eval and args.json)


def _unwritable(error: Exception, args: argparse.Namespace) -> str:
    """What is in the way where a file could not be written; empty for any other error."""
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
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and error.filename:
        there = Path(os.fsdecode(error.filename))
        for path in (there, *there.parents):
            if path.is_file():
                return f"{path} is a file; expected a folder"
    if error.errno == errno.EISDIR and error.filename:
        return f"{os.fsdecode(error.filename)} is a folder; expected a file"
    return ""


def _goes_on(what: str, args: argparse.Namespace) -> str:
    """What happened, and how a command that keeps what it did is gone on with."""
    resumable = (
        commands.run_demo,
        commands.run_train,
        commands.run_embed,
        commands.run_discover,
        importing.run_import,
        desk.run_desk,
    )
    if args.run not in resumable:
        return what
    again = "the same command"
    if getattr(args, "fresh", False):
        again += " without --fresh"
    return f"{what}; {again} goes on from here"
