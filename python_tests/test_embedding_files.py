"""Files of embeddings: written whole or not at all, read as they were, damage told."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import arrays, same_embeddings

from oltr_ext.data import FeatureStream, read_embeddings, write_embeddings
from oltr_ext.engine.splits import make_loader


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 40 * 24 + 128), batch=st.integers(1, 9))
def test_a_kill_that_leaves_any_number_of_bytes_costs_a_batch(tmp_path_factory, cut, batch):
    folder, parts = tmp_path_factory.mktemp("kill"), arrays()
    made = []

    def start(row):
        for n in range(row, 40, batch):
            made.append(n)
            yield parts["train"][0][n : n + batch]

    source = {"model": "a"}
    streamed = {**parts, "train": (FeatureStream((40, 6), start, batch), parts["train"][1])}
    write_embeddings(folder / "a", streamed, source=source)
    whole = (folder / "a" / "train_features.npy").read_bytes()
    write_embeddings(folder / "b", streamed, source=source)
    (folder / "b" / "manifest.json").rename(folder / "b" / ".manifest.json.partial")
    (folder / "b" / "train_features.npy").write_bytes(whole[:cut])
    (folder / "b" / "open_test_features.npy").unlink()
    made.clear()
    write_embeddings(folder / "b", streamed, source=source)
    same_embeddings(folder / "a", folder / "b")
    left = max(cut - 128, 0) // 24  # whole rows behind a header of 128 bytes
    assert (made[0] if made else 40) == (left if left == 40 else left - left % batch)


def test_files_without_a_manifest_are_somebodys(tmp_path):
    ours = arrays()
    for name in ("train", "open_val"):
        np.save(tmp_path / f"{name}_features.npy", ours["train"][0])
    mapped = np.load(tmp_path / "train_features.npy", mmap_mode="r")
    with pytest.raises(ValueError, match=r"train_features\.npy is there, and no manifest"):
        write_embeddings(tmp_path, {**ours, "train": (mapped, ours["train"][1])})
    assert len(list(tmp_path.iterdir())) == 2
    assert np.array_equal(np.load(tmp_path / "open_val_features.npy"), ours["train"][0])


def test_labels_without_a_manifest_are_somebodys_too(tmp_path):
    file = tmp_path / "open_test_labels.npy"
    np.save(file, np.array([7, 8, 9]))
    before = file.read_bytes()
    with pytest.raises(ValueError, match=r"open_test_labels\.npy is there, and no manifest"):
        write_embeddings(tmp_path, arrays())
    assert [f.name for f in tmp_path.iterdir()] == [file.name] and file.read_bytes() == before


def test_no_names_are_none_and_were_an_empty_list(tmp_path):
    ours = {name: part for name, part in arrays().items() if name != "open_test"}
    path = write_embeddings(tmp_path, ours, open_names=[], source={"n": 1})
    manifest = json.loads(path.read_text())
    assert manifest["open_names"] is None
    path.write_text(json.dumps({**manifest, "open_names": []}))
    assert write_embeddings(tmp_path, ours, source={"n": 1}) == path


def test_an_unfinished_writing_that_says_no_source_begins_again(tmp_path):
    theirs, ours = arrays(), {k: (x + 1, y) for k, (x, y) in arrays().items()}

    def start(row):
        raise KeyboardInterrupt

    killed = {**theirs, "val": (FeatureStream((16, 6), start), ours["val"][1])}
    with pytest.raises(KeyboardInterrupt):
        write_embeddings(tmp_path / "a", killed)
    for folder in ("a", "b"):
        write_embeddings(tmp_path / folder, ours)
    same_embeddings(tmp_path / "a", tmp_path / "b")


def test_names_are_told_apart_and_labels_count_from_0(tmp_path):
    with pytest.raises(ValueError, match="class_names of which no two are the same"):
        write_embeddings(tmp_path, arrays(), list("abca"))
    parts = arrays()
    parts["train"] = parts["train"][0], parts["train"][1] + 10**9
    with pytest.raises(ValueError, match="label 1000000003 with 40 rows of train leaves most"):
        write_embeddings(tmp_path, parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val": None}, "expected splits train, val, test and perhaps .*, got train, test, open"),
        ({"extra": (np.ones((2, 6)), np.zeros(2))}, "expected splits train, val, test"),
        ({"test": (np.ones((2, 5)), np.zeros(2, int))}, r"one width, got .*'test': 5"),
        ({"test": (np.ones(6), np.zeros(6, int))}, r"test features \(N, D\), got shape \(6,\)"),
        ({"test": (np.ones((2, 6)), np.zeros(3, int))}, "expected 2 integer labels of test, got"),
        ({"test": (np.ones((2, 6)), np.zeros(2))}, "expected 2 integer labels of test, got float"),
        ({"test": (np.ones((2, 6)), np.array([0, 4]))}, "label 4 of test, row 1, is out of range"),
        ({"train": (np.ones((2, 6)), np.array([-1, 1]))}, "label -1 of train, row 0, .* 0 to 1"),
        ({"val": (np.ones((2, 6)), np.array([-1, -1]))}, "val holds no image of a known class"),
        ({"val": (np.full((2, 6), np.nan), np.array([0, 1]))}, "val_features.npy: row 0 is not"),
    ],
)
def test_wrong_arrays_are_told_and_leave_nothing_whole(tmp_path, change, message):
    parts = {k: v for k, v in {**arrays(), **change}.items() if v is not None}
    with pytest.raises(ValueError, match=message):
        write_embeddings(tmp_path / "own", parts)
    with pytest.raises((ValueError, FileNotFoundError), match=r"is not finished|no embeddings in"):
        read_embeddings(tmp_path / "own")


def test_what_does_not_fit_is_told(tmp_path):
    parts = arrays()
    parts["train"][0][37, 2] = 1e6
    with pytest.raises(ValueError, match=r"train_features\.npy: row 37 is not finite as float16"):
        write_embeddings(tmp_path, parts, dtype="float16")
    write_embeddings(tmp_path, parts)  # nobody can tell whose the rest is: begun again
    with pytest.raises(ValueError, match="expected 34 test_ids, got 1"):
        write_embeddings(tmp_path / "b", parts, test_ids=["a"])
    with pytest.raises(ValueError, match="expected dtype float32 or float16, got 'float64'"):
        write_embeddings(tmp_path / "b", parts, dtype="float64")
    short = {**parts, "test": (FeatureStream((24, 6), lambda row: [np.ones((3, 6))]), [0] * 24)}
    with pytest.raises(ValueError, match=r"test_features.npy: expected 24 rows, the stream gave 3"):
        write_embeddings(tmp_path / "c", short)
    short["test"] = (FeatureStream((24, 6), lambda row: [np.ones((3, 5))]), [0] * 24)
    with pytest.raises(ValueError, match=r"expected features \(B, 6\), got shape \(3, 5\)"):
        write_embeddings(tmp_path / "d", short)
    write_embeddings(tmp_path / "e", parts, source={"n": 1})
    (tmp_path / "e" / "manifest.json").rename(tmp_path / "e" / ".manifest.json.partial")
    with pytest.raises(ValueError, match="e holds the unfinished writing of other embeddings"):
        write_embeddings(tmp_path / "e", parts, source={"n": 2})


def test_damage_is_told_when_it_is_read(tmp_path):
    def fresh(name):
        return write_embeddings(tmp_path / name, arrays()).parent

    with pytest.raises(FileNotFoundError, match=r"no embeddings in .*none: it has no manifest"):
        read_embeddings(tmp_path / "none")
    folder = fresh("cut")
    file = folder / "val_features.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"val_features.npy is truncated or damaged"):
        read_embeddings(folder)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*val_features.npy"):
        read_embeddings(folder)
    folder = fresh("shape")
    np.save(folder / "test_features.npy", np.ones((24, 7), np.float32))
    with pytest.raises(ValueError, match=r"says float32 \(24, 6\), the file holds .*\(24, 7\)"):
        read_embeddings(folder)
    folder = fresh("labels")
    np.save(folder / "train_labels.npy", np.zeros(40, np.int64))
    with pytest.raises(ValueError, match=r"train_labels.npy is not what manifest.json describes"):
        read_embeddings(folder)
    folder = fresh("manifest")
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, message in (
        ({"class_names": ["a"]}, "label 1 of train, row 1, is out of range: there are 1 class"),
        ({"width": 0}, "manifest.json is no manifest of embeddings: width: "),
        ({"format": 2}, "manifest.json is no manifest of embeddings: format: "),
        ({"splits": {}}, "expected a split train"),
    ):
        (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match=message):
            read_embeddings(folder)
    # a number that is none is seen when its row is used, and no sooner
    folder = fresh("nan")
    file = np.lib.format.open_memmap(folder / "train_features.npy", "r+")
    file[7, 3] = np.inf
    file.flush()
    rows = read_embeddings(folder).splits["train"]
    rows.__getitems__(np.array([6, 8]))
    with pytest.raises(ValueError, match=r"train_features.npy: row 7 is not finite"):
        rows.__getitems__(np.array([[0, 6], [1, 7]]))


def test_rows_travel_to_loader_processes_as_a_path(tmp_path):
    write_embeddings(tmp_path, arrays())
    rows = read_embeddings(tmp_path).splits["train"]
    assert len(pickle.dumps(rows)) < 2000
    keys = [np.array([[0, 3], [1, 39]]), np.array([[2, 0]])]
    got = list(make_loader(rows, keys, 1))
    for (features, labels), key in zip(got, keys, strict=True):
        want = rows.__getitems__(key)
        assert torch.equal(features, want[0]) and torch.equal(labels, want[1])
        assert features.shape == (len(key), 6, 1, 1) and features.dtype == torch.float32
    assert rows[3][0].shape == (6, 1, 1) and rows[3][1] == 3
