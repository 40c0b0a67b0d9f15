"""What a run writes down as it goes: one CSV for the record, TensorBoard for the eye."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import TextIO

from torch.utils.tensorboard import SummaryWriter

from oltr_ext.engine.checkpoint import BOARD, LOG

__all__ = ["COLUMNS", "Logs"]

COLUMNS = (
    "stage",
    "epoch",
    "step",
    "loss",
    "grad_norm",
    "lr_feature",
    "lr_classifier",
    "lr_centroid",
    "val_overall",
    "val_many",
    "val_medium",
    "val_few",
    "val_auroc",
)


class Logs:
    """Appends rows to `log.csv` and scalars to `tensorboard/`.

    `position` goes into every checkpoint; opening with it drops the rows a killed run wrote
    after that checkpoint, so an interrupted log ends up the same bytes as an uninterrupted one.
    There is nothing in `folder` before the first row.
    """

    def __init__(self, folder: Path, *, position: int = 0, step: int = 0) -> None:
        self._folder, self._position, self._step = folder, position, step
        self._file: TextIO | None = None
        self._held = ExitStack()

    def _open(self) -> TextIO:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / LOG
            known = path.stat().st_size if path.exists() else 0
            file = path.open("r+" if known else "w", 1, encoding="utf-8", newline="")
            self._held.enter_context(file)
            file.truncate(min(self._position, known))
            file.seek(0, os.SEEK_END)
            self._csv = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            if file.tell() == 0:
                self._csv.writeheader()
            # from there on: rows of the checkpoint's own step were written before it
            board = SummaryWriter(str(self._folder / BOARD), purge_step=self._step + 1)
            self._board, self._file = self._held.enter_context(board), file
        return self._file

    def row(self, values: Mapping[str, float | int], step: int) -> None:
        """One line; `step` counts over both stages. Floats are written with all their bits."""
        self._open()
        self._csv.writerow({k: values.get(k, "") for k in COLUMNS})
        for key, value in values.items():
            if key not in ("stage", "step"):
                self._board.add_scalar(key, value, step)

    def position(self) -> int:
        """Bytes written so far, safely on disk."""
        file = self._open()
        file.flush()
        os.fsync(file.fileno())
        return file.tell()

    def __enter__(self) -> Logs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # what there was no room for has no room now either: the first error is the cause
        with nullcontext() if error is None else suppress(OSError):
            self._held.close()
