"""Checkpoints: tensors in safetensors, everything else as JSON in its header, written atomically.

Nothing in the file can run on load. A checksum over header and tensors tells a damaged file
from a whole one, and `last` keeps its predecessor, so a run always has a good state to go on from.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as make_safetensors
from torch import Tensor

__all__ = [
    "CheckpointError",
    "State",
    "clear",
    "fingerprint",
    "load",
    "load_latest",
    "old_fingerprints",
    "read_model",
    "save",
    "save_last",
    "state_of",
    "under",
]

FORMAT = 1
SUFFIX = ".safetensors"
LAST, PREVIOUS = f"last{SUFFIX}", f"previous{SUFFIX}"
BEST, STAGE_1_BEST = f"best{SUFFIX}", f"best_stage1{SUFFIX}"  # two: `best` is written before `last`
MODEL = f"model{SUFFIX}"  # the result
OF_TRAINING = (LAST, PREVIOUS, BEST, STAGE_1_BEST)


SETTLED = ("head.bank.", "head.threshold", "head.score_index", "head.prior_share")
"""Tensors of a model that are settled anew where a run asks for another threshold or prior."""

NOT_KEPT = "not kept"
"""Origin of a stage 2 from before it was written down."""

Contents = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and header."""

Latest = tuple[dict[str, Tensor], dict[str, Any], list[str]]
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


def save(path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write `path` so that at any moment it is either the old file or the whole new one.

    Args:
        tensors: any dtype and device; shared storage is written once a name.
        header: JSON-able; floats keep their bits.
    """
    # clone: safetensors refuses tensors that share memory, and views carry strides
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    text = json.dumps({"format": FORMAT, **header})
    # one key only: safetensors keeps no order between keys, and equal runs write equal bytes
    blob = make_safetensors(whole, metadata={"oltr_ext": f"{_checksum(text, whole):08x} {text}"})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # a fixed name, so a kill leaves one at most
    with temporary.open("wb") as file:
        file.write(blob)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def load(
    path: str | Path, *, beside: Collection[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and header of a checkpoint.

    Args:
        beside: tensors that stay in the file: they come as empty ones on "meta", and the checksum,
            which is over them too, is not verified.

    Raises:
        CheckpointError: no such file, truncated, damaged, or not an oltr_ext checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}")
    try:
        if beside:
            tensors, metadata = _read_beside(path, beside)
        else:
            blob = path.read_bytes()
            tensors = parse_safetensors(blob)
            size = int.from_bytes(blob[:8], "little")
            metadata = json.loads(blob[8 : 8 + size])["__metadata__"]
        crc, _, text = metadata["oltr_ext"].partition(" ")
    except KeyError:
        raise CheckpointError(f"{path} is not a checkpoint of oltr_ext") from None
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from None
    if not beside and f"{_checksum(text, tensors):08x}" != crc:
        raise CheckpointError(f"{path} is damaged: its checksum does not match")
    header = json.loads(text)
    if header.pop("format") != FORMAT:
        raise CheckpointError(f"{path} was written by another version of oltr_ext")
    return tensors, header


def _read_beside(path: Path, beside: Collection[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118  # it is no dict
            if name in beside:
                there = file.get_slice(name)
                tensors[name] = torch.empty(there.get_shape(), device="meta")
            else:  # cloned: out of the map of a file that others may cut off
                tensors[name] = file.get_tensor(name).clone()
        return tensors, file.metadata() or {}


def read_model(
    path: str | Path, *, beside: Collection[str] = ()
) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    """Path, tensors and header of a checkpoint, or of the `model.safetensors` of a run's folder.

    Args:
        beside: see `load`.

    Raises:
        CheckpointError: no such file, damaged, or written before its threshold was calibrated.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no run {path}")
    if path.is_dir():
        if not (path / MODEL).is_file():
            raise CheckpointError(f"{path} is no finished run: it has no {MODEL}")
        path /= MODEL
    tensors, header = load(path, beside=beside)
    if header["threshold"] is None:
        raise CheckpointError(
            f"{path} was written in the middle of an epoch and has no threshold for unknown; "
            f"finish the run, and use its {MODEL}"
        )
    return path, tensors, header


def save_last(folder: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write the folder's `last` checkpoint, keeping the one before it as `previous`."""
    folder = Path(folder)
    if (folder / LAST).exists():
        # between this line and the next, `previous` alone holds the state; load_latest looks there
        os.replace(folder / LAST, folder / PREVIOUS)
    save(folder / LAST, tensors, header)


def load_latest(folder: str | Path) -> Latest | None:
    """The newest good state in a folder, or None where there is none.

    A damaged file is set aside as `<name>.damaged`, so that it can never displace a good one.

    Returns:
        tensors, header, and a line for each newer file that had to be passed over.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged.
    """
    found = [Path(folder) / name for name in (LAST, PREVIOUS) if (Path(folder) / name).exists()]
    problems: list[str] = []
    for path in found:
        try:
            return (*load(path), problems)
        except CheckpointError as error:
            os.replace(path, path.with_name(f"{path.name}.damaged"))
            problems.append(f"{error}; set aside as {path.name}.damaged")
    if problems:
        raise CheckpointError("; ".join(problems))
    return None


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def state_of(header: Mapping[str, Any]) -> State:
    """Where the run of a checkpoint stands."""
    kept = header["state"]
    return State(**{"origin": NOT_KEPT if kept["stage"] == 2 else None, **kept})


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """The same for models that learned the same, whatever was settled afterwards."""
    learned = {k: v for k, v in weights.items() if not k.startswith(SETTLED)}
    return f"learned {_checksum('', learned):08x}"


def old_fingerprints(weights: Mapping[str, Tensor]) -> set[str]:
    """What earlier versions wrote, of which none is told from another by its look: of what was
    learned, and of all there was, which settling anew changes."""
    return {fingerprint(weights).removeprefix("learned "), f"{_checksum('', weights):08x}"}


def clear(run: Path) -> None:
    """Remove a run's own files, and nothing else that may lie in its folder."""
    for name in (*OF_TRAINING, MODEL):
        for file in (name, f"{name}.damaged", f".{name}.tmp"):
            (run / file).unlink(missing_ok=True)
    (run / "log.csv").unlink(missing_ok=True)
    shutil.rmtree(run / "tensorboard", ignore_errors=True)


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> int:
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        crc = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), crc)
        crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().tobytes(), crc)
    return crc


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and rename is durable enough
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
