"""One self-contained HTML report with its JSON, and the picture for a README."""

from __future__ import annotations

from .picture import write_picture
from .render import write_report
from .samples import KINDS, choose_samples
from .types import MethodResult, ReportFiles, Sample

__all__ = [
    "KINDS",
    "MethodResult",
    "ReportFiles",
    "Sample",
    "choose_samples",
    "write_picture",
    "write_report",
]
