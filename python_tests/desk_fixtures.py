"""A run, a folder of images and a desk over them: a plugin of the tests that want their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from desk_cases import a_run, opened, photos

from oltr_ext.desk.desk import Desk


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return a_run(finished, tmp_path / "run")


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    return photos(data, tmp_path / "photos")


@pytest.fixture
def desk(run: Path, folder: Path) -> Iterator[Desk]:
    desk = opened(run, folder)
    yield desk
    desk.close()
