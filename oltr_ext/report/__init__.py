"""One self-contained HTML report with its JSON, and the picture for a README."""

from __future__ import annotations

from .class_counts import write_class_counts
from .groups import write_groups
from .picture import write_picture
from .render import write_report
from .samples import KINDS, choose_samples, png_uri
from .types import MethodResult, ReportFiles, Sample

__all__ = [
    "KINDS",
    "MethodResult",
    "ReportFiles",
    "Sample",
    "choose_samples",
    "png_uri",
    "write_class_counts",
    "write_groups",
    "write_picture",
    "write_report",
]
