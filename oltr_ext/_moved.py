"""Import paths that have moved. The old ones work until 0.2.0, with a warning, and go with it."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

MOVED = {
    "oltr_ext.engine.assess": ("oltr_ext.serve.assess", "oltr_ext.serve.tables"),
    "oltr_ext.engine.check": ("oltr_ext.engine.verify",),
    "oltr_ext.engine.config": ("oltr_ext.config.loading",),
    "oltr_ext.engine.demo": ("oltr_ext.cli.demo",),
    "oltr_ext.engine.embed": ("oltr_ext.serve.embed",),
    "oltr_ext.engine.export": ("oltr_ext.serve.export",),
    "oltr_ext.engine.methods": ("oltr_ext.config.methods",),
    "oltr_ext.engine.predict": (
        "oltr_ext.serve.trained",
        "oltr_ext.serve.predict",
        "oltr_ext.engine.checkpoint",
    ),
    "oltr_ext.engine.schema": ("oltr_ext.config.schema",),
}
"""Modules as they were called, and where their public names are now."""


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__

        def find(name: str) -> Any:
            for home in () if name.startswith("_") else MOVED[old]:
                there = importlib.import_module(home)
                if hasattr(there, name):
                    warnings.warn(
                        f"{old}.{name} has moved to {home}.{name}; the old path goes with 0.2.0",
                        DeprecationWarning,
                        stacklevel=2,
                    )
                    return getattr(there, name)
            raise AttributeError(f"module {old!r} has no attribute {name!r}")

        vars(module)["__getattr__"] = find


def install() -> None:
    """Let Python's import find the old paths, after whatever there is under them."""
    sys.meta_path.append(_Finder())
