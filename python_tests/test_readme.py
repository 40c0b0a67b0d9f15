"""The examples of the README, and of the pages beside the code, run as they stand, but that what
trains on the icons does so for an epoch a stage; and what pages link to is there."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from pair import in_processes
from PIL import Image

from oltr_ext.config.loading import make_config
from oltr_ext.config.methods import apply_method

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in ROOT.glob("oltr_ext/**/*.md") if p.stem.isupper()),
    *sorted(ROOT.glob("benchmarks/**/README.md")),
]
FOLDERS = ("benchmarks", "csrc", "examples", "findings", "oltr_ext")
LINKED = sorted({*ROOT.glob("*.md"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.md"))})
BLOCKS = [
    code
    for page in PAGES
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
]


@pytest.fixture(scope="module")
def icons(tmp_path_factory):
    """Where the first example that trains on the icons leaves its run, for the others to find."""
    return tmp_path_factory.mktemp("icons") / "runs"


def example(rank, code, folder):
    os.chdir(folder)
    exec(compile(code, "<example>", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_example(code, tmp_path, icons):
    for name in re.findall(r"\w+\.png", code):
        Image.new("L", (40, 40), "white").save(tmp_path / name)
    # of training one epoch a stage, in place of minutes
    short = 'settings={"stage1.epochs": 1, "stage2.epochs": 1}, data="icons"'
    trains = 'data="icons"' in code
    if trains and icons.exists():
        shutil.copytree(icons, tmp_path / "runs")
    in_processes(1, example, code.replace('data="icons"', short), tmp_path)
    if trains and not icons.exists():
        shutil.copytree(tmp_path / "runs", icons)


def test_examples_are_short():
    assert len(BLOCKS) >= 6
    for code in BLOCKS:
        assert len([line for line in code.splitlines() if line.strip()]) <= 12


def test_the_configuration_of_your_own_holds():
    (text,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    for method in (None, "oltr-plus", "crt"):
        values = yaml.safe_load(text)
        make_config(values if method is None else apply_method(values, method))


def test_commands_of_make_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "csrc/README.md"]:
        for target in re.findall(r"`make ([a-z-]+)", page.read_text()):
            assert target in targets, f"{page.name}: make {target}"


def prose(page):
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page):
    """What headings are called in links, as GitHub has it."""
    for heading in re.findall(r"^#+ +(.+)$", prose(page), flags=re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        yield re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_and_headings_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not link.startswith(("http://", "https://")):
            name, _, anchor = link.partition("#")
            there = page.parent / name if name else page
            assert there.exists(), link
            assert not anchor or anchor in anchors(there), link


def test_what_lies_in_the_folder_of_a_run_is_on_its_page(finished):
    page = (ROOT / "oltr_ext/engine/README.md").read_text()
    names = {f"{path.name}{'/' * path.is_dir()}" for path in finished.iterdir()}
    assert {"model.safetensors", "tensorboard/"} < names
    assert all(f"`{name}`" in page for name in names)
