"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_example(code, run_python):
    run_python(code)


def test_examples_are_short():
    assert len(BLOCKS) == 3
    for code in BLOCKS:
        assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_linked_files_exist():
    for link in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (Path(__file__).parent.parent / link).exists(), link
