"""Open long-tailed recognition: fused ops over a bank of class centroids, layers, and training.

`oltr_ext.train`, `oltr_ext.load` and `oltr_ext.OLTRClassifier` are what most people need. Beneath
them `oltr_ext.ops` holds the ops, `oltr_ext.nn` the layers, `oltr_ext.config` what a run is told,
`oltr_ext.engine` training, `oltr_ext.serve` what a trained model answers.

Importing never raises: without a native library the ops run in pure PyTorch and say so once.
"""

import importlib
from typing import TYPE_CHECKING, Any

from oltr_ext import _moved
from oltr_ext._version import __version__
from oltr_ext.ops import backend, use_backend

if TYPE_CHECKING:
    from oltr_ext.api import train
    from oltr_ext.estimator import OLTRClassifier
    from oltr_ext.serve.model import load

__all__ = ["OLTRClassifier", "__version__", "backend", "load", "train", "use_backend"]

PARTS = ("config", "data", "engine", "metrics", "nn", "report", "serve")
NAMES = {
    "OLTRClassifier": "oltr_ext.estimator",
    "load": "oltr_ext.serve.model",
    "train": "oltr_ext.api",
}

_moved.install()


def __getattr__(name: str) -> Any:
    """`oltr_ext.nn` after `import oltr_ext` alone, at the cost of its import only then."""
    if name in PARTS:
        return importlib.import_module(f"oltr_ext.{name}")
    if name in NAMES:
        return getattr(importlib.import_module(NAMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PARTS, *NAMES})
