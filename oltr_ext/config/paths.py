"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

__all__ = ["AnyPath", "expanded", "path_of"]


def expanded(text: str) -> str:
    """With `~`, `~name`, `$NAME` and `${NAME}` put in; what is not known stays as it is."""
    return os.path.expanduser(os.path.expandvars(text))


def path_of(text: str | Path) -> Path:
    return Path(expanded(str(text)))


AnyPath = Annotated[Path, AfterValidator(path_of)]
"""A path in a configuration: `~` and `$NAME` put in."""
