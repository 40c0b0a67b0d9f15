"""The embedded icons: counts, splits, licences, and the array against its build script.

Set ICONIFY_JSON to the unpacked npm package (or its tarball) to rebuild and compare the array too;
without it the comparison is against the recorded SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from oltr_ext.data import icons
from oltr_ext.data.icons import build, iconify

FOLDER = Path(icons.__file__).parent
TABLE_ROW = re.compile(r"\| `(.+?)` \| (.+?) \| (.+?) \| \[?([\w.-]+)\]?.*? \| (\w+) \| (\d+) \|")


@pytest.fixture(scope="module")
def data() -> icons.Icons:
    return icons.load_icons()


def attribution_rows() -> dict[str, tuple[str, str, str, str, str]]:
    text = (FOLDER / "ATTRIBUTION.md").read_text("utf-8")
    return {row[0]: row[1:] for row in TABLE_ROW.findall(text)}


def test_counts(data: icons.Icons) -> None:
    counts = data.train_counts
    assert counts.tolist() == build.train_counts()
    assert counts[0] == 60 and counts[-1] == 4 and len(counts) == icons.NUM_KNOWN == 50
    for name, classes in {"val": 50, "test": 50, "open_val": 10, "open_test": 20}.items():
        per_class = np.unique(data.class_index[data.rows(name)], return_counts=True)[1]
        assert per_class.tolist() == [build.PER_CLASS[name]] * classes
    assert len(set(data.class_names)) == len(data.class_names) == 80
    assert len(data.known_names) == 50


def test_split_gives_tensors_with_open_labels(data: icons.Icons) -> None:
    images, labels = data.split("train")
    assert images.shape == (int(data.train_counts.sum()), 1, 32, 32)
    assert images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert torch.bincount(labels).tolist() == data.train_counts.tolist()
    assert set(data.split("open_test")[1].tolist()) == {-1}
    assert sorted(set(data.split("test")[1].tolist())) == list(range(50))
    with pytest.raises(ValueError, match="expected a split of train"):
        data.split("valid")


def test_sides_share_no_set_and_open_classes_differ(data: icons.Icons) -> None:
    def sets(*names: str) -> set[str]:
        return {s for name in names for s in data.set_name[data.rows(name)]}

    sides = [sets("train"), sets("val", "open_val"), sets("test", "open_test")]
    for i, side in enumerate(sides):
        assert len(side) > 10
        assert all(side.isdisjoint(other) for other in sides[:i])
    open_classes = [set(data.class_index[data.rows(f"open_{side}")]) for side in ("val", "test")]
    assert open_classes[0].isdisjoint(open_classes[1])
    assert min(open_classes[0] | open_classes[1]) == 50


def test_no_author_draws_for_two_sides() -> None:
    sides: dict[str, set[str]] = {}
    for _, author, _, side, _ in attribution_rows().values():
        sides.setdefault(re.sub(r"^\[(.+)\]\(.*\)$", r"\1", author), set()).add(side)
    assert all(len(side) == 1 for side in sides.values())


def test_images_are_distinct_and_not_blank(data: icons.Icons) -> None:
    pixels = data.images.reshape(len(data.images), -1).astype(np.float32)
    assert pixels.mean(1).min() > 0.01 * 255
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    cosine = pixels @ pixels.T
    np.fill_diagonal(cosine, 0)
    assert cosine.max() <= iconify.SIMILAR


def test_class_names_follow_the_rules(data: icons.Icons) -> None:
    assert not set(data.class_names) & build.EXCLUDED
    assert all(name.isalpha() for name in data.class_names)
    for row, name in enumerate(data.icon_name):
        assert iconify.stem(name) == data.class_names[data.class_index[row]]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("home", "home"),
        ("home-2-outline", "home"),
        ("baseline-home-24px", "home"),
        ("ios-home", "home"),
        ("home-lock", "home-lock"),
        ("outline", "outline"),
    ],
)
def test_stem_strips_style_only(name: str, label: str) -> None:
    assert iconify.stem(name) == label


def test_size_licences_and_attribution(data: icons.Icons) -> None:
    assert (FOLDER / "icons.npz").stat().st_size <= 500_000
    rows = attribution_rows()
    sets, counts = np.unique(data.set_name, return_counts=True)
    assert {prefix: int(row[4]) for prefix, row in rows.items()} == dict(
        zip(sets.tolist(), counts.tolist(), strict=True)
    )
    assert {row[2] for row in rows.values()} <= iconify.LICENCES
    side = {"train": "train", "val": "val", "open_val": "val", "test": "test", "open_test": "test"}
    for prefix, part in zip(data.set_name, np.array(icons.SPLITS)[data.split_index], strict=True):
        assert rows[prefix][3] == side[part]


def test_usable_sets_leave_out_what_they_must() -> None:
    fine = {"license": {"spdx": "MIT"}, "category": "UI 24px", "palette": False}
    sets = {
        "good": fine,
        "copyleft": {**fine, "license": {"spdx": "GPL-3.0"}},
        "share-alike": {**fine, "license": {"spdx": "CC-BY-SA-4.0"}},
        "unknown": {**fine, "license": {"title": "Ours"}},
        "logo": {**fine, "category": "Logos"},
        "emoji": {**fine, "category": "Emoji"},
        "colour": {**fine, "palette": True},
        "moving": {**fine, "tags": ["Contains Animations"]},
        "fa9-brands": fine,
    }
    assert iconify.usable_sets(sets) == ["good"]


def test_array_is_what_the_script_makes(data: icons.Icons) -> None:
    digest = hashlib.sha256(data.images.tobytes()).hexdigest()
    text = (FOLDER / "ATTRIBUTION.md").read_text("utf-8")
    assert f"`{digest}`" in text
    if package := os.environ.get("ICONIFY_JSON"):
        arrays, fresh = build.build(Path(package))
        assert fresh == text
        with np.load(FOLDER / "icons.npz", allow_pickle=False) as stored:
            assert set(stored.files) == set(arrays)
            for key, array in arrays.items():
                np.testing.assert_array_equal(stored[key], array, err_msg=key)


def test_damaged_array_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(FOLDER / "icons.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    arrays["sha256"] = arrays["sha256"][::-1]
    np.savez(tmp_path / "icons.npz", **arrays)
    monkeypatch.setattr(icons, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(ValueError, match="damaged"):
        icons.load_icons.__wrapped__()
