"""Open long-tailed recognition: fused ops over a bank of class centroids, layers, and training.

Importing never raises: without a native library the ops run in pure PyTorch and say so once.
`oltr_ext.ops` holds the ops, `oltr_ext.nn` the layers, `oltr_ext.config` what a run is told,
`oltr_ext.engine` training, `oltr_ext.serve` what a trained model answers.
"""

import importlib
from typing import Any

from oltr_ext import _moved
from oltr_ext._version import __version__
from oltr_ext.ops import backend, use_backend

__all__ = ["__version__", "backend", "use_backend"]

_moved.install()


def __getattr__(name: str) -> Any:
    """`oltr_ext.nn` after `import oltr_ext` alone, at the cost of its import only then."""
    if name in ("config", "data", "engine", "metrics", "nn", "report", "serve"):
        return importlib.import_module(f"oltr_ext.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
