"""The maker of a newcomer's folder: names and hands on one side each, the tail, the lists."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks" / "tables"))

import small_pictures_data as made
from small_pictures_data import DEVELOPMENT, JUDGED

from oltr_ext.config.loading import load_config
from oltr_ext.engine.splits import load_splits

SIZES = {"known": 12, "unknown": 5, "most": 4}
NAMES = [*(f"thing-{n}" for n in range(120)), "flag-here", "thing-9-light-skin-tone"]
BODY = '<path d="M0 0h16v16z" fill="#f00"/>'


def sets():
    """Every set has every name, but the first, which has no even one."""
    whole = {name: {"body": BODY} for name in NAMES}
    odd = {name: icon for name, icon in whole.items() if not name.endswith(("0", "2", "4"))}
    return {s: {"icons": whole if n else odd, "width": 16} for n, s in enumerate(made.SETS)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("small")
    return {part: made.make(sets(), part, root / part.folder, **SIZES) for part in PARTS}


PARTS = (DEVELOPMENT, JUDGED)


def rows(config, name):
    return [line.split() for line in (config.parent / f"{name}.txt").read_text().splitlines()]


def test_the_two_share_no_name_and_no_hand_of_a_test(folders):
    names = [{path.split("/")[1] for n in ("train", "unknown") for path, _ in rows(f, n)}
             for f in folders.values()]  # fmt: skip
    assert not names[0] & names[1] and all(len(each) == 17 for each in names)
    assert not set(DEVELOPMENT.test) & set(JUDGED.test)
    for part, config in folders.items():
        hands = {name: {path.split("/")[0] for path, _ in rows(config, name)} for name in
                 ("train", "test", "unknown")}  # fmt: skip
        assert hands["test"] == hands["unknown"] == set(part.test)
        assert not hands["train"] & set(part.test)
        assert not any("flag" in path or "tone" in path for path, _ in rows(config, "train"))


def test_a_class_has_its_pictures_by_as_many_hands(folders):
    for config in folders.values():
        count = Counter(label for _, label in rows(config, "train"))
        assert [count[str(c)] for c in range(12)] == made.counts(12, 4)
        assert {tuple(row) for row in rows(config, "train")} and count["0"] == 4
        assert count["11"] == 1
        assert {label for _, label in rows(config, "unknown")} == {"-1"}
        paths = [path for n in ("train", "test", "unknown") for path, _ in rows(config, n)]
        assert len(set(paths)) == len(paths) == sum(made.counts(12, 4)) + 2 * 12 + 2 * 5
    assert sum(made.counts(150, 8)) == 503


def test_the_configuration_trains_on_them(folders):
    splits = load_splits(load_config(folders[JUDGED]).data)
    assert splits.size == 32 and splits.num_classes == 12 and len(splits.open_test) == 10
    picture = next((folders[JUDGED].parent / "pictures").rglob("*.png"))
    assert sorted(Image.open(picture).getcolors(), reverse=True)[0][1] in (
        (255, 0, 0),
        (255, 255, 255),
    )


def test_too_few_names_are_told():
    with pytest.raises(ValueError, match=r"too few names are drawn by \d of 8 sets"):
        made.make(sets(), JUDGED, Path("none"), known=100, unknown=5, most=4)
