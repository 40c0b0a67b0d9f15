"""The README's examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from oltr_ext.config.loading import make_config
from oltr_ext.config.methods import apply_method

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_example(code, run_python):
    run_python(code)


def test_examples_are_short():
    assert len(BLOCKS) == 4
    for code in BLOCKS:
        assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_the_configuration_of_your_own_holds():
    (text,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    for method in (None, "oltr-plus", "crt"):
        values = yaml.safe_load(text)
        make_config(values if method is None else apply_method(values, method))


def test_linked_files_exist():
    for link in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (Path(__file__).parent.parent / link).exists(), link
