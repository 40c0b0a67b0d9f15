"""`oltr data from-cifar`: the field's kept images, torchvision's files, open sets by name."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
import scipy.io
from photos import put
from PIL import Image
from torchvision import datasets

from oltr_ext.cli import main
from oltr_ext.config.loading import load_config
from oltr_ext.data.importing.cifar import kept_images
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.verify import check_data

LABELS = {10: np.random.default_rng(1).permutation(np.arange(50_000) % 10),
          100: np.random.default_rng(2).permutation(np.arange(50_000) % 100)}  # fmt: skip


@pytest.mark.parametrize(
    ("classes", "kind", "factor", "images"),
    [
        (100, "exp", 100, 10_847),
        (100, "exp", 50, 12_608),
        (100, "exp", 10, 19_573),
        (10, "exp", 100, 12_406),
        (10, "exp", 10, 20_431),
        (10, "step", 100, 25_250),
        (100, "step", 100, 25_250),
        (10, "exp", 1, 50_000),
    ],
)
def test_kept_images(classes, kind, factor, images):
    kept = kept_images(LABELS[classes], kind, factor)
    assert len(kept) == len(set(kept.tolist())) == images
    sizes = np.bincount(LABELS[classes][kept])
    assert sizes[0] == 50_000 // classes and sizes[-1] == 50_000 // classes // factor
    # NumPy's global generator, seeded once and asked class by class, is what the field uses
    np.random.seed(0)
    for label in range(classes):
        rows = np.where(LABELS[classes] == label)[0]
        np.random.shuffle(rows)
        ours = kept[LABELS[classes][kept] == label]
        assert np.array_equal(ours, rows[: len(ours)])
    assert images == 50_000 or not np.array_equal(
        kept, kept_images(LABELS[classes], kind, factor, seed=1)
    )


def pickled(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


def batch(rng, key, labels):
    data = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return {"data": data, key: [int(n) for n in labels], "batch_label": "b", "filenames": []}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Files of torchvision's layout, with fewer images: 10 and 5 a class of CIFAR."""
    root, rng = tmp_path / "data", np.random.default_rng(0)
    ten, hundred = datasets.CIFAR10, datasets.CIFAR100
    folder = root / ten.base_folder
    labels = rng.permutation(np.arange(100) % 10)
    lists = [
        [f"data_batch_{n}", pickled(folder / f"data_batch_{n}", batch(rng, "labels", part))]
        for n, part in enumerate(np.split(labels, 5), 1)
    ]
    monkeypatch.setattr(ten, "train_list", lists)
    tests = [
        ["test_batch", pickled(folder / "test_batch", batch(rng, "labels", np.arange(20) % 10))]
    ]
    monkeypatch.setattr(ten, "test_list", tests)
    md5 = pickled(folder / "batches.meta", {"label_names": [f"ten {n}" for n in range(10)]})
    monkeypatch.setattr(ten, "meta", {**ten.meta, "md5": md5})

    folder = root / hundred.base_folder
    for name, count in (("train", 500), ("test", 200)):
        part = batch(rng, "fine_labels", rng.permutation(np.arange(count) % 100))
        lists = [[name, pickled(folder / name, part)]]
        monkeypatch.setattr(hundred, f"{name}_list", lists)
    md5 = pickled(folder / "meta", {"fine_label_names": [f"hundred {n}" for n in range(100)]})
    monkeypatch.setattr(hundred, "meta", {**hundred.meta, "md5": md5})

    digits = {"X": rng.integers(0, 256, (32, 32, 3, 7), dtype=np.uint8), "y": np.arange(1, 8)}
    scipy.io.savemat(root / "test_32x32.mat", {**digits, "y": digits["y"][:, None]})
    md5 = hashlib.md5((root / "test_32x32.mat").read_bytes()).hexdigest()
    svhn = {**datasets.SVHN.split_list, "test": ["", "test_32x32.mat", md5]}
    monkeypatch.setattr(datasets.SVHN, "split_list", svhn)

    for n, part in enumerate(("train", "val", "test")):
        put(root / "dtd/dtd/images/banded" / f"b{n}.jpg", n)
        (root / "dtd/dtd/labels").mkdir(exist_ok=True)
        (root / f"dtd/dtd/labels/{part}1.txt").write_text(f"banded/b{n}.jpg\n")

    for name, text in (("categories_places365.txt", "/a/abbey 0\n"),
                       ("places365_val.txt", "p1.jpg 0\np2.jpg 0\n")):  # fmt: skip
        (root / name).write_text(text)
        md5 = hashlib.md5(text.encode()).hexdigest()
        if "val" in name:
            lists = {**datasets.Places365._FILE_LIST_META, "val": (name, md5)}
            monkeypatch.setattr(datasets.Places365, "_FILE_LIST_META", lists)
        else:
            monkeypatch.setattr(datasets.Places365, "_CATEGORIES_META", (name, md5))
    for n in (1, 2):
        put(root / "val_256" / f"p{n}.jpg", 50 + n)
    return root


def run(name, root, out, *more):
    words = ("data", "from-cifar", name, "--root", root, "--out", out, *more)
    return main([*map(str, words)])


def test_a_set_that_trains(root, tmp_path, capsys):
    out = tmp_path / "lt"
    sets = ("cifar100", "svhn", "textures", "places")
    assert run("cifar10", root, out, "--factor", 10, "--open", *sets) == 0
    said = capsys.readouterr().out
    assert "cifar10, exp, factor 10, seed 0: 36 training images of 10 classes, 10 to 1" in said
    assert "open, near: cifar100, 200 images" in said and "open, far: svhn, 7 images" in said
    config = load_config(str(out / "data.yaml"))
    assert check_data(config.data).problems == []
    found = load_splits(config.data)
    assert list(found.open_tests) == ["near/cifar100", "far/svhn", "far/textures", "far/places"]
    assert [len(part) for part in found.open_tests.values()] == [200, 7, 3, 2]
    assert found.class_names[3] == "ten 3" and len(found.train) + len(found.val) == 36
    source = datasets.CIFAR10(root, train=True)
    kept = kept_images(source.targets, "exp", 10)
    lines = (out / "train.txt").read_text().splitlines()
    for line, row in zip(lines, kept, strict=True):
        path, label = line.split()
        assert int(label) == source.targets[row]
        assert np.array_equal(np.asarray(Image.open(out / path)), source.data[row])
    tested = datasets.CIFAR10(root, train=False)
    assert np.array_equal(np.asarray(found.test.image(4)), tested.data[4])
    digits = datasets.SVHN(root, split="test").data[3].transpose(1, 2, 0)
    assert np.array_equal(np.asarray(found.open_tests["far/svhn"].image(3)), digits)
    assert run("cifar10", root, out, "--factor", 10, "--open", *sets) == 0  # nothing to do
    assert run("cifar10", root, out, "--factor", 5) == 1
    assert "holds another import" in capsys.readouterr().err


def test_step_and_validation_on_test(root, tmp_path, capsys):
    out = tmp_path / "step"
    assert run("cifar100", root, out, "--imbalance", "step", "--factor", 5, "--val", "test") == 0
    found = load_splits(load_config(str(out / "data.yaml")).data)
    assert Counter(found.train_counts.tolist()) == {5: 50, 1: 50}
    assert len(found.val) == len(found.test) == 200


def test_what_is_not_there(root, tmp_path, capsys):
    for name, words, error in (
        ("cifar10", ("--open", "cifar10"), "no open set cifar10 for cifar10; there are cifar100, "),
        ("cifar10", ("--open", "mnist"), "no open set mnist"),
        ("cifar10", ("--factor", "0.5"), "a factor from 1 on, got exp and 0.5"),
    ):
        assert run(name, root, tmp_path / "none", *words) == 1
        assert error in capsys.readouterr().err
    (root / "val_256" / "p1.jpg").unlink()
    (root / "cifar-100-python" / "train").write_bytes(b"torn")
    for name, words, error in (
        ("cifar10", ("--open", "places"), "places: 1 image is missing, as "),
        ("cifar100", (), f".CIFAR100({str(root)!r}, train=True, download=True)\n"),
    ):
        assert run(name, root, tmp_path / "none", *words) == 1
        assert error in capsys.readouterr().err
        assert not (tmp_path / "none").exists()
