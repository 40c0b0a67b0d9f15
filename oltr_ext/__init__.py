"""Open long-tailed recognition: fused ops over a bank of class centroids, layers, and training.

`oltr_ext.train`, `oltr_ext.load` and `oltr_ext.OLTRClassifier` are what most people need. Beneath
them `oltr_ext.ops` holds the ops, `oltr_ext.nn` the layers, `oltr_ext.config` what a run is told,
`oltr_ext.engine` training, `oltr_ext.serve` what a trained model answers.

Importing never raises: without a native library the ops run in pure PyTorch and say so once.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oltr_ext import _moved
from oltr_ext._version import __version__

if TYPE_CHECKING:
    from oltr_ext.api import train
    from oltr_ext.estimator import OLTRClassifier
    from oltr_ext.serve.model import load

__all__ = ["OLTRClassifier", "__version__", "backend", "load", "train", "use_backend"]

PARTS = ("config", "data", "engine", "metrics", "nn", "ops", "report", "serve")
NAMES = {
    "OLTRClassifier": "oltr_ext.estimator",
    "backend": "oltr_ext.ops",
    "load": "oltr_ext.serve.model",
    "train": "oltr_ext.api",
    "use_backend": "oltr_ext.ops",
}


def _is_command() -> bool:
    """Whether this process is `oltr` or `python -m oltr_ext`."""
    argv = getattr(sys, "argv", None) or [""]  # not there, or empty, where Python is embedded
    if argv[0] == "-m":  # until the module is found
        return sys.orig_argv[-len(argv) :][:1] == ["oltr_ext"]
    return Path(argv[0]).name == "oltr"


_moved.install()
if not _is_command():  # whose help and errors would wait seconds for torch
    # exported programs are promised that `import oltr_ext` alone registers the ops
    from oltr_ext.ops import backend, use_backend


def __getattr__(name: str) -> Any:
    """`oltr_ext.nn` after `import oltr_ext` alone, at the cost of its import only then."""
    if name in PARTS:
        return importlib.import_module(f"oltr_ext.{name}")
    if name in NAMES:
        return getattr(importlib.import_module(NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PARTS, *NAMES})
