"""The large icon pack, made of a small package: what is kept, who is on which side, errors."""

from __future__ import annotations

import json
import tarfile

import numpy as np
import pytest

from oltr_ext.cli import main
from oltr_ext.data import icons_large
from oltr_ext.data.icons.iconify import SIMILAR, Icon, drop_duplicates, drop_lookalikes
from oltr_ext.data.make import make
from oltr_ext.data.pack import load_pack

pytest.importorskip("resvg_py")

LABELS = ("home", "arrow-left", "cat", "dog", "sun", "moon", "tree", "fish", "boat", "car")
SETS = [f"set{n:02}" for n in range(16)]


def blob(label: int, hand: int, corners: int = 9) -> str:
    """A polygon of its label, as one hand draws it."""
    rng = np.random.default_rng((label, 1))
    own = np.random.default_rng((label, hand, 2))
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(4, 11, corners) + own.uniform(-2.5, 2.5, corners)
    x, y = 12 + radius * np.cos(angle), 12 + radius * np.sin(angle)
    points = " ".join(f"{a:.2f},{b:.2f}" for a, b in zip(x, y, strict=True))
    return f'<polygon fill="currentColor" points="{points}"/>'


def info(author: str, spdx: str = "MIT", **more: object) -> dict:
    return {"license": {"spdx": spdx}, "author": {"name": author}, "palette": False, **more}


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """16 good sets by 14 hands and a fork, two that may not be used, logos, and bad icons."""
    folder = tmp_path_factory.mktemp("iconify") / "package"
    (folder / "json").mkdir(parents=True)
    collections = {s: info(f"author {n % 14}") for n, s in enumerate(SETS)}
    icons = {
        s: {f"{name}-outline": {"body": blob(k, n)} for k, name in enumerate(LABELS)}
        for n, s in enumerate(SETS)
    }
    for n, s in enumerate(SETS):  # a class that is too small, blanks, look-alikes, a brand, a size
        if n < 4:
            icons[s]["rare"] = {"body": blob(50, n)}
        icons[s]["empty"] = {"body": "<g/>"}
        icons[s]["gear"] = icons[s]["cog"] = {"body": blob(60, n)}
        icons[s]["acme"] = {"body": blob(61, n)}
        icons[s]["24"] = {"body": blob(62, n)}
        icons[s]["hidden"] = {"body": blob(63, n), "hidden": True}
    collections["fork"] = info("someone else")
    icons["fork"] = dict(icons[SETS[0]])
    collections["copyleft"] = info("author 0", "GPL-3.0")
    collections["logos"] = info("author 0", "CC0-1.0", category="Logos")
    icons["copyleft"] = icons[SETS[1]]
    icons["logos"] = {"acme": {"body": blob(61, 99)}}
    (folder / "collections.json").write_text(json.dumps(collections))
    for prefix, group in icons.items():
        values = {"prefix": prefix, "icons": group, "width": 24, "height": 24}
        (folder / "json" / f"{prefix}.json").write_text(json.dumps(values))
    with tarfile.open(folder.parent / "package.tgz", "w:gz") as tar:
        tar.add(folder, "package")
    return folder


def build(source):
    sizes = {"open_test": 2, "open_val": 1}
    return icons_large.make(source, source, lambda _: None, strangers=sizes)["icons-large"]


@pytest.fixture(scope="module")
def pack(package):
    return build(package)


def test_only_usable_icons_are_kept(pack):
    assert set(pack.class_names) == set(LABELS)
    assert set(pack.source_names) <= {*SETS, "fork"}
    # the fork's copies are in the pack once
    pixels = pack.images.reshape(len(pack.images), -1).astype(np.float64)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    cosine = pixels @ pixels.T - np.eye(len(pixels))
    assert cosine.max() <= SIMILAR + 1e-9
    about = json.loads(pack.about)
    assert set(about["licences"].values()) == {"MIT"} and about["renderer"].startswith("resvg-py")


def test_a_hand_is_on_one_side_and_classes_are_known_or_open(pack):
    authors = json.loads(pack.about)["authors"]
    sides: dict[str, set[str]] = {}
    for row, split in enumerate(pack.split_index):
        author = authors[pack.source_names[pack.source_index[row]]]
        sides.setdefault(author, set()).add(("train", "val", "test", "val", "test")[split])
    assert all(len(side) == 1 for side in sides.values()) and len(sides) > 10
    known = set(range(pack.num_known))
    assert len(known) == 7
    for split in ("train", "test"):
        assert set(pack.class_index[pack.rows(split)].tolist()) == known
    counts = pack.train_counts.tolist()
    assert counts == sorted(counts, reverse=True)
    for split, classes in (("open_val", 1), ("open_test", 2)):
        assert len(set(pack.class_index[pack.rows(split)].tolist())) == classes
    tested = pack.rows("test")
    pairs = {*zip(pack.class_index[tested], pack.source_index[tested], strict=True)}
    assert len(pairs) == len(tested)


def test_tarball_and_folder_give_the_same_bytes(package, tmp_path, monkeypatch, capsys):
    for split in icons_large.OPEN:
        monkeypatch.setitem(icons_large.OPEN, split, 1)
    files = []
    for n, source in enumerate((package, package.parent / "package.tgz")):
        monkeypatch.setenv("OLTR_EXT_CACHE", str(tmp_path / str(n)))
        assert main(["data", "make", "icons-large", "--source", str(source)]) == 0
        files.append((tmp_path / str(n) / "icons-large.npz").read_bytes())
        assert sorted(p.name for p in (tmp_path / str(n)).iterdir()) == ["icons-large.npz"]
        assert load_pack("icons-large").num_known
    assert files[0] == files[1]
    said = capsys.readouterr().out
    assert "known and 2 open classes" in said and "done in " in said


def test_duplicates_and_lookalikes():
    rng = np.random.default_rng(0)
    a, b, c = rng.integers(0, 255, (3, 32, 32), dtype=np.uint8) * (rng.random((3, 32, 32)) < 0.3)

    def icon(label: str, image: np.ndarray) -> Icon:
        return Icon("set", "name", label, "hand", image.astype(np.uint8))

    icons = [icon("x", a), icon("x", a), icon("y", b), icon("z", b), icon("z", c), icon("y", a)]
    kept = drop_lookalikes(icons)
    assert [i.label for i in kept] == ["z"] and (kept[0].image == c).all()
    # a chain: the second falls to the first and rules nothing out
    chain = [a.copy() for _ in range(3)]
    lit = np.flatnonzero(a.ravel() > 60)
    chain[1].ravel()[lit[:: len(lit) // 9]] = 0
    chain[2].ravel()[lit[:: len(lit) // 9]] = 0
    chain[2].ravel()[lit[3 :: len(lit) // 9]] = 0
    unit = (
        np.stack(chain).reshape(3, -1)
        / np.linalg.norm(np.stack(chain).reshape(3, -1), axis=1)[:, None]
    )
    cosine = unit @ unit.T
    assert cosine[0, 1] > SIMILAR < cosine[1, 2] and cosine[0, 2] < SIMILAR
    kept = drop_duplicates([icon("x", image) for image in chain])
    assert [(k.image == chain[n]).all() for k, n in zip(kept, (0, 2), strict=True)] == [True, True]


def test_damaged_and_wrong_sources_are_named(package, tmp_path):
    blob = (package.parent / "package.tgz").read_bytes()
    for keep in (0, 100, len(blob) // 2):
        (tmp_path / "part.tgz").write_bytes(blob[:keep])
        with pytest.raises(ValueError, match=r"part.tgz is no whole tarball: ") as caught:
            build(tmp_path / "part.tgz")
        assert "\n" not in str(caught.value)
    for source in (tmp_path, tmp_path / "none.tgz"):
        with pytest.raises(FileNotFoundError, match=f"no collections.json .* {source}"):
            build(source)
    with pytest.raises(ValueError, match="no data set 'photos' to make; there are glyphs, icons"):
        make("photos")


def test_npm_is_asked_once(package, tmp_path, monkeypatch):
    script = tmp_path / "bin" / "npm"
    script.parent.mkdir()
    downloads = tmp_path / "downloads"
    monkeypatch.setenv("PATH", f"{script.parent}")
    with pytest.raises(RuntimeError, match=r"npm is missing: .* get @iconify/json@2.2.535 as a"):
        icons_large.fetch(downloads, print)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    script.write_text("#!/bin/sh\ntouch half.tgz\necho 'npm error 404' >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(RuntimeError, match="failed: npm error 404; try again, or get "):
        icons_large.fetch(downloads, print)
    assert not downloads.exists()
    script.write_text(
        f"#!/bin/sh\necho $@ >> {tmp_path}/asked\ncp {package.parent}/package.tgz iconify.tgz\n"
    )
    for _ in range(2):
        path = icons_large.fetch(downloads, lambda _: None)
    assert path.read_bytes() == (package.parent / "package.tgz").read_bytes()
    assert (tmp_path / "asked").read_text() == "pack --silent @iconify/json@2.2.535\n"
