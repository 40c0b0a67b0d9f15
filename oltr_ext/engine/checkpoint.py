"""Checkpoints: tensors in safetensors, everything else as JSON in its header, written atomically.

Nothing in the file can run on load. A checksum over header and tensors tells a damaged file
from a whole one, and `last` keeps its predecessor, so a run always has a good state to go on from.

Where processes share tensors, process 0 writes the file that one process would have written, from
pieces that the others send, and each reads its own rows: no process ever holds the whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

from safetensors import SafetensorError
from torch import Tensor

from oltr_ext._files import written
from oltr_ext.engine import distributed
from oltr_ext.engine.pieces import from_lead, pieces
from oltr_ext.engine.tensorfile import TensorFile, checksum, write

__all__ = [
    "CheckpointError",
    "OtherMakeError",
    "State",
    "check_make",
    "clear",
    "fingerprint",
    "load",
    "load_latest",
    "old_fingerprints",
    "open_model",
    "opened",
    "read_model",
    "save",
    "save_last",
    "state_of",
    "under",
]

FORMAT = 1
KEY = "oltr_ext"  # of the one entry of metadata
DAMAGED = (ValueError, TypeError, AttributeError, LookupError, RuntimeError, SafetensorError)
SUFFIX = ".safetensors"
LOG = "log.csv"
LAST, PREVIOUS = f"last{SUFFIX}", f"previous{SUFFIX}"
BEST, STAGE_1_BEST = f"best{SUFFIX}", f"best_stage1{SUFFIX}"  # two: `best` is written before `last`
MODEL = f"model{SUFFIX}"  # the result
BOARD = "tensorboard"
OF_TRAINING = (LAST, PREVIOUS, BEST, STAGE_1_BEST)


SETTLED = ("head.bank.", "head.threshold", "head.score_index", "head.prior_share")
"""Tensors of a model that are settled anew where a run asks for another threshold or prior."""

NOT_KEPT = "not kept"
"""Origin of a stage 2 from before it was written down."""

Contents = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and header."""

Opened = tuple[TensorFile, dict[str, Any]]
"""As `Contents`, of which the tensors are read when they are asked for."""

Latest = tuple[TensorFile, dict[str, Any], list[str]]
"""What `load_latest` returns."""


@dataclass
class State:
    """Where a run stands. With the tensors it is all that a checkpoint holds."""

    stage: int = 1
    step: int = 0  # within the stage
    total: int = 0  # over both
    best: float = -1.0  # validation accuracy of the best epoch of this stage
    losses: list[float] = field(default_factory=list)  # since the last row of the log
    log_position: int = 0
    origin: str | None = None  # of stage 1: a `fingerprint`, `NOT_KEPT`, or None for the run's own


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not ours; the message names the file."""


class OtherMakeError(CheckpointError):
    """A file that is whole, and no checkpoint of this version."""


def save(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    *,
    before: Path | None = None,
) -> None:
    """Write `path` so that at any moment it is either the old file or the whole new one.

    In several processes, all of those that share tensors call this, and process 0 writes.

    Args:
        tensors: any dtype and device; shared storage is written once a name.
        header: JSON-able; floats keep their bits.
        before: where to keep the old file.
    """
    if not distributed.lead():
        for name in sorted(tensors):
            for _ in pieces(tensors[name]):
                pass
        return
    text = json.dumps({"format": FORMAT, **header})
    # where there is `before`, it alone holds the state for a moment; load_latest looks there
    with written(Path(path), before=before) as file:
        # one key only: safetensors keeps no order between keys, and equal runs write equal bytes
        write(cast(BinaryIO, file), tensors, text, KEY, lambda crc: f"{crc:08x} {text}")


def load(path: str | Path, *, beside: Collection[str] = ()) -> Contents:
    """Tensors (on the CPU) and header of a checkpoint.

    Args:
        beside: tensors that stay in the file: they come as empty ones on "meta", and the checksum,
            which is over them too, is not verified.

    Raises:
        CheckpointError: no such file, truncated, damaged, or not an oltr_ext checkpoint.
    """
    with _told(Path(path)):
        file, crc, text = _parsed(Path(path))
        tensors = {name: file.like[name] if name in beside else file[name] for name in file}
        return tensors, _header(text, "" if beside else crc, tensors)


def opened(path: str | Path, *, alone: bool = False) -> Opened:
    """As `load`, with tensors that stay in the file until they are asked for.

    Every process calls this. Process 0 reads all of the file once, in pieces, to verify it, and
    what it finds is found in all of them.

    Args:
        alone: this process alone calls it.

    Raises:
        CheckpointError: see `load`.
    """
    path, problem = Path(path), ""
    if alone or distributed.lead():
        try:
            with _told(path):
                file, crc, text = _parsed(path)
                header = _header(text, crc, file)
        except CheckpointError as error:
            problem = f"{type(error).__name__}:{error}"
    problem = problem if alone else from_lead(problem)
    if problem:
        kind, _, message = problem.partition(":")
        raise (OtherMakeError if kind == OtherMakeError.__name__ else CheckpointError)(message)
    if not alone and not distributed.lead():
        with _told(path):
            file, _, text = _parsed(path)
            header = _header(text, "", file)
    return file, header


def check_make(path: Path) -> None:
    """Raises OtherMakeError for a file that is no checkpoint of this version, and for none that is
    missing or damaged: its header alone is read."""
    try:
        with _told(path):
            file, _, text = _parsed(path)
            _header(text, "", file)
    except OtherMakeError:
        raise
    except CheckpointError:
        return


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file is a CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}")
    try:
        yield
    except CheckpointError as error:
        raise type(error)(f"{path} {error}") from None
    except DAMAGED as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from None


def _parsed(path: Path) -> tuple[TensorFile, str, str]:
    """A file, its checksum in words and what that begins with."""
    file = TensorFile(path)
    if KEY not in file.metadata:
        raise OtherMakeError("is not a checkpoint of oltr_ext")
    crc, _, text = file.metadata[KEY].partition(" ")
    return file, crc, text


def _header(text: str, crc: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of a checkpoint with these tensors; without a `crc` nothing is verified."""
    if crc and f"{checksum(text, tensors):08x}" != crc:
        raise CheckpointError("is damaged: its checksum does not match")
    header: dict[str, Any] = json.loads(text)
    if header.pop("format") != FORMAT:
        raise OtherMakeError("was written by another version of oltr_ext")
    return header


def read_model(
    path: str | Path, *, beside: Collection[str] = ()
) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Path, tensors and header of a checkpoint, or of the `model.safetensors` of a run's folder.

    Args:
        beside: see `load`.

    Raises:
        CheckpointError: no such file, damaged, or written before its threshold was calibrated.
    """
    path = _model(path)
    tensors, header = load(path, beside=beside)
    _check_calibrated(path, header)
    return path, tensors, header


def open_model(path: str | Path) -> tuple[Path, TensorFile, dict[str, Any]]:
    """As `read_model`, for `opened`."""
    path = _model(path)
    tensors, header = opened(path)
    _check_calibrated(path, header)
    return path, tensors, header


def _model(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no run {path}")
    if path.is_dir():
        if not (path / MODEL).is_file():
            raise CheckpointError(f"{path} is no finished run: it has no {MODEL}")
        path /= MODEL
    return path


def _check_calibrated(path: Path, header: Mapping[str, Any]) -> None:
    if header["threshold"] is None:
        raise CheckpointError(
            f"{path} was written in the middle of an epoch and has no threshold for unknown; "
            f"finish the run, and use its {MODEL}"
        )


def save_last(folder: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write the folder's `last` checkpoint, keeping the one before it as `previous`; see `save`."""
    save(Path(folder) / LAST, tensors, header, before=Path(folder) / PREVIOUS)


def load_latest(folder: str | Path) -> Latest | None:
    """The newest good state in a folder, or None where there is none; see `opened`.

    A damaged file is set aside as `<name>.damaged`, so that it can never displace a good one; one
    of another make stays where it is.

    Returns:
        tensors, header, and a line for each newer file that had to be passed over.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged; one of another make.
    """
    there = [name for name in (LAST, PREVIOUS) if (Path(folder) / name).exists()]
    problems: list[str] = []
    for path in (Path(folder) / name for name in from_lead(" ".join(there)).split()):
        try:
            return (*opened(path), problems)
        except OtherMakeError as error:
            raise OtherMakeError(f"{error}: choose another folder") from None
        except CheckpointError as error:
            if distributed.lead():
                os.replace(path, path.with_name(f"{path.name}.damaged"))
            problems.append(f"{error}; set aside as {path.name}.damaged")
    if problems:
        raise CheckpointError("; ".join(problems))
    return None


@overload
def under(prefix: str, tensors: TensorFile) -> TensorFile: ...


@overload
def under(prefix: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]: ...


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    names = {name: name.removeprefix(prefix) for name in tensors if name.startswith(prefix)}
    return _named(tensors, names)


def _named(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Mapping[str, Tensor]:
    """Some of the tensors under other names, out of a file only where they are asked for."""
    if isinstance(tensors, TensorFile):
        return tensors.named(names)
    return {new: tensors[name] for name, new in names.items()}


def state_of(header: Mapping[str, Any]) -> State:
    """Where the run of a checkpoint stands."""
    kept = header["state"]
    return State(**{"origin": NOT_KEPT if kept["stage"] == 2 else None, **kept})


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """The same for models that learned the same, whatever was settled afterwards."""
    learned = _named(weights, {k: k for k in weights if not k.startswith(SETTLED)})
    return f"learned {checksum('', learned):08x}"


def old_fingerprints(weights: Mapping[str, Tensor]) -> set[str]:
    """What earlier versions wrote, of which none is told from another by its look: of what was
    learned, and of all there was, which settling anew changes."""
    return {fingerprint(weights).removeprefix("learned "), f"{checksum('', weights):08x}"}


def clear(run: Path) -> None:
    """Remove a run's own files, and nothing else that may lie in its folder."""
    for name in (*OF_TRAINING, MODEL):
        for file in (name, f"{name}.damaged", f".{name}.tmp"):
            (run / file).unlink(missing_ok=True)
    (run / LOG).unlink(missing_ok=True)
    board = run / BOARD
    for events in board.glob("events.out.tfevents.*"):
        events.unlink()
    if board.is_dir() and not any(board.iterdir()):
        board.rmdir()
