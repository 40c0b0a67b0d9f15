"""`oltr data from-arrow`: what `datasets` saves to disk, and Parquet files of images."""

from __future__ import annotations

import json
import sys

import pytest
from photos import encoded, listed, put, tree

from oltr_ext.cli import main
from oltr_ext.data.importing.arrow import _label

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

NAMES = ["fox", "owl", "bee"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}


def run(out, *words):
    return main(["data", "from-arrow", *map(str, words), "--out", str(out)])


def rows(first, count):
    images = [{"bytes": encoded(n), "path": f"{n}.png"} for n in range(first, first + count)]
    return pa.table(
        {
            "image": pa.array(images, IMAGE),
            "label": pa.array([n % 3 for n in range(count)], pa.int64()),
            "obs": pa.array([n // 3 for n in range(count)], pa.int64()),
        }
    )


def saved(folder, table, files=2):
    """As `Dataset.save_to_disk`: IPC streams, their names, the features."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{files:05d}.arrow" for n in range(files)]
    step = -(-table.num_rows // files)
    for n, name in enumerate(names):
        part = table.slice(n * step, step)
        with (
            pa.OSFile(str(folder / name), "wb") as sink,
            pa.ipc.new_stream(sink, part.schema) as to,
        ):
            to.write_table(part)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def images(out, part):
    files = tree(out / "images")
    return {files[path]: name for path, name in listed(out, part)}


def test_a_data_set_on_disk(tmp_path, capsys):
    saved(tmp_path / "one", rows(0, 150))
    assert run(tmp_path / "set", tmp_path / "one", "--observation-column", "obs") == 0
    assert "\n50 observations\n" in capsys.readouterr().out
    found = {
        k: v for part in ("train", "val", "test") for k, v in images(tmp_path / "set", part).items()
    }
    assert found == {encoded(n): NAMES[n % 3] for n in range(150)}


def test_a_dictionary_of_them(tmp_path, capsys):
    for split, first in (("train", 0), ("validation", 100), ("test", 200)):
        saved(tmp_path / "all" / split, rows(first, 9), files=1)
    text = json.dumps({"splits": ["train", "validation", "test"]})
    (tmp_path / "all" / "dataset_dict.json").write_text(text)
    assert run(tmp_path / "set", tmp_path / "all") == 0
    for part, first in (("train", 0), ("val", 100), ("test", 200)):
        assert images(tmp_path / "set", part) == {
            encoded(first + n): NAMES[n % 3] for n in range(9)
        }


def test_parquet_with_its_own_names(tmp_path, capsys):
    folder = tmp_path / "data"
    folder.mkdir()
    kept = {b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()}
    pq.write_table(
        rows(0, 12).replace_schema_metadata(kept), folder / "train-00000-of-00001.parquet"
    )
    pq.write_table(
        rows(20, 6).replace_schema_metadata(kept), folder / "test-00000-of-00001.parquet"
    )
    assert run(tmp_path / "set", folder) == 0
    assert images(tmp_path / "set", "test") == {encoded(20 + n): NAMES[n % 3] for n in range(6)}


def test_each_parquet_file_has_names_of_its_own(tmp_path, capsys):
    """Which datasets takes from the first: findings/parquet-class-names.sh."""
    for part, first, names in (("train", 0, NAMES), ("test", 20, ["bee", "fox", "owl"])):
        label = {"label": {"names": names, "_type": "ClassLabel"}}
        said = json.dumps({"info": {"features": {**FEATURES, **label}}}).encode()
        table = rows(first, 6).replace_schema_metadata({b"huggingface": said})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    words = [f"{part}={tmp_path / part}.parquet" for part in ("train", "test")]
    assert run(tmp_path / "set", *words) == 0
    test = {encoded(20 + n): ["bee", "fox", "owl"][n % 3] for n in range(6)}
    assert images(tmp_path / "set", "test") == test


def test_plain_bytes_paths_and_labels(tmp_path, capsys):
    put(tmp_path / "x.png", 90)
    table = pa.table(
        {
            "Photo": pa.array(
                [*(encoded(n) for n in range(6)), b"", None, b"no image"], pa.binary()
            ),
            "kind": ["a", "a", "a", "b\nc", "b c", "b c", "a", "a", None],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    words = ("--image-column", "Photo", "--label-column", "kind")
    assert run(tmp_path / "set", tmp_path / "t.parquet", *words) == 0
    said = capsys.readouterr().out
    assert "6 images of 2 known classes" in said and "unreadable: 3 (t.parquet[6]: " in said
    table = pa.table({"image": ["x.png", "gone.png"] * 2, "label": [7, -1, 8, 9]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert run(tmp_path / "paths", tmp_path / "p.parquet", "--test", 0) == 1
    assert "no class can spare a validation image" in capsys.readouterr().err


def test_what_is_no_label():
    assert {_label(no, NAMES, "row") for no in (None, -1, float("nan"))} == {None}


def test_what_breaks_off(tmp_path, capsys):
    saved(tmp_path / "one", rows(0, 150))
    last = tmp_path / "one" / "data-00001-of-00002.arrow"
    last.write_bytes(last.read_bytes()[:30_000])
    pq.write_table(rows(0, 9), tmp_path / "whole.parquet")
    torn = tmp_path / "torn.parquet"
    torn.write_bytes((tmp_path / "whole.parquet").read_bytes()[:-20])
    assert run(tmp_path / "set", tmp_path / "one", torn) == 0
    said = capsys.readouterr().out
    assert said.startswith("75 images of 3 known classes")
    assert "unreadable: 2 (data-00001-of-00002.arrow: breaks off" in said
    assert "torn.parquet: breaks off" in said


def test_errors(tmp_path, capsys, monkeypatch):
    pq.write_table(rows(0, 9), tmp_path / "t.parquet")
    kept = {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    wrong = rows(0, 9).set_column(1, "label", pa.array([0, 1, 2] * 2 + [0, -2, 1]))
    pq.write_table(wrong.replace_schema_metadata(kept), tmp_path / "wrong.parquet")
    (tmp_path / "empty").mkdir()
    for words, error in (
        ((tmp_path / "t.parquet", "--label-column", "kind"),
         "no column kind; there are image, label, obs: say which by --label-column"),
        ((tmp_path / "t.parquet", "--image-column", "label"), "column label holds int; expected"),
        ((tmp_path / "wrong.parquet",), "wrong.parquet[7]: label -2, where the file has 3 class"),
        ((tmp_path / "gone",), "no file or folder"),
        ((tmp_path / "empty",), "has no file of .parquet or .arrow"),
    ):  # fmt: skip
        assert run(tmp_path / "set", *words) == 1
        assert error in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / "set").exists()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(tmp_path / "set", tmp_path / "t.parquet") == 1
    assert "pip install oltr_ext[arrow]" in capsys.readouterr().err


def test_folders_that_are_splits(tmp_path):
    """As the Hub converts data sets, and with the other ending of Parquet."""
    for part, first in (("train", 0), ("validation", 100), ("test", 200)):
        (tmp_path / "data" / "default" / part).mkdir(parents=True)
        ending = "pq" if part == "test" else "parquet"
        pq.write_table(rows(first, 9), tmp_path / "data" / "default" / part / f"0000.{ending}")
    assert run(tmp_path / "set", tmp_path / "data") == 0
    for part, first in (("train", 0), ("val", 100), ("test", 200)):
        assert images(tmp_path / "set", part).keys() == {encoded(first + n) for n in range(9)}


def test_labels_of_other_types(tmp_path, capsys):
    for kind, value, want in (
        ("bytes", lambda n: NAMES[n % 3].encode(), "bee fox owl"),
        ("floats", lambda n: float(n % 3), "0 1 2"),
        ("lists", lambda n: [n % 3], None),
    ):
        table = rows(0, 12).set_column(1, "label", pa.array([value(n) for n in range(12)]))
        pq.write_table(table, tmp_path / f"{kind}.parquet")
        assert run(tmp_path / kind, tmp_path / f"{kind}.parquet") == (want is None)
        if want is None:
            said = capsys.readouterr().err
            assert "lists.parquet[0]: label holds lists; expected one class an image" in said
        else:
            assert (tmp_path / kind / "names.txt").read_text().split() == want.split()


def test_of_several_labels_the_one_that_has_names(tmp_path, capsys):
    table = rows(0, 12).append_column("species", pa.array([NAMES[n % 3] for n in range(12)]))
    pq.write_table(table, tmp_path / "t.parquet")
    assert run(tmp_path / "set", tmp_path / "t.parquet") == 0
    assert (tmp_path / "set" / "names.txt").read_text().split() == sorted(NAMES)
    said = "t.parquet: label is not used: --label-column label\n"
    assert said in capsys.readouterr().out
    kept = {b"huggingface": json.dumps({"info": {"features": FEATURES}}).encode()}
    pq.write_table(table.replace_schema_metadata(kept), tmp_path / "named.parquet")
    assert run(tmp_path / "named", tmp_path / "named.parquet") == 0
    assert "species is not used" in capsys.readouterr().out  # the label has names of its own
