"""Open long-tailed recognition: fused ops over a bank of class centroids, layers, and training.

Importing never raises: without a native library the ops run in pure PyTorch and say so once.
`oltr_ext.ops` holds the ops, `oltr_ext.nn` the layers, `oltr_ext.engine` the training package.
"""

from oltr_ext._version import __version__
from oltr_ext.ops import backend, use_backend

__all__ = ["__version__", "backend", "use_backend"]
