"""Words: `1 image` and `2 images`, in whatever users read."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from oltr_ext._words import counted

PACKAGE = Path(__file__).resolve().parent.parent / "oltr_ext"
SHAPES = ("nn", "ops", "metrics", "reference")
"""Layers whose errors say what shape they expect: users read what those above make of it."""

NOUNS = (
    "images classes groups rows epochs steps files processes strangers observations lines names "
    "packages icons sets characters labels models shards folders copies columns"
)
COUNTS = re.compile(rf" (?:(?:\w+, )?\w+ )?(?:{'|'.join(NOUNS.split())})\b(?! (?:of|in|by) \w+ing)")


@pytest.mark.parametrize(
    ("said", "want"),
    [
        (counted(1, "image"), "1 image"),
        (counted(0, "open class"), "0 open classes"),
        (counted(12345, "image"), "12,345 images"),
        (counted(1, "class holds", "classes hold"), "1 class holds"),
        (counted(2, "class holds", "classes hold"), "2 classes hold"),
    ],
)
def test_a_number_and_its_noun(said, want):
    assert said == want


def unagreed(source: str) -> Iterator[str]:
    """Numbers in front of a noun that stays in the plural."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        parts = [None, None, *node.values]
        for before, text, value, noun in zip(parts, parts[1:], parts[2:], parts[3:], strict=False):
            if not isinstance(value, ast.FormattedValue) or not isinstance(noun, ast.Constant):
                continue
            found = COUNTS.match(noun.value)
            if not found or not is_number(value.value):
                continue
            lead = text.value if isinstance(text, ast.Constant) else ""
            part = lead in (" of ", " of the ") and isinstance(before, ast.FormattedValue)
            share = part and is_number(before.value)  # 1 of 2 images
            if not share and not lead.endswith((" to ", " x ")):
                yield f"line {value.lineno}: {{{ast.unparse(value.value)}}}{found.group()}"


def is_number(value: ast.expr) -> bool:
    """Whether it may be one that is 1: a length, a sum, or what is called as numbers are."""
    text = ast.unparse(value)
    if text.isupper() or text.startswith("counted("):
        return False
    return bool(
        re.search(r"len\(|sum\(|total|count|number$|num_|images|rows|limits|size|\bn$", text)
    )


def test_nouns_agree_with_their_numbers():
    found = [
        f"{path.relative_to(PACKAGE)}, {line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] not in SHAPES and path.name != "build.py"
        for line in unagreed(path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ('f"{len(x):,} images"', True),
        ('f"{sum(x)} known classes of {n} sets"', True),
        ('f"{len(a)} of {len(x)} images"', False),
        ("f\"{counted(len(a), 'image')} of {len(x)} classes\"", True),
        ("f\"{counted(len(a), 'image')}\"", False),
        ('f"{path} images"', False),
    ],
)
def test_the_rule_finds_a_plural_of_one(line, wrong):
    assert bool([*unagreed(line)]) == wrong
