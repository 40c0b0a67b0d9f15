"""`oltr enroll` and `oltr classes`, as a user runs them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from strangers import rows, train_on_rows

import oltr_ext
from oltr_ext.cli import main
from oltr_ext.serve.predict import row_features

MODEL = "model.safetensors"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def images(data: Path, tmp_path: Path) -> Path:
    """Six images of the class that is never trained on, in a folder."""
    folder = tmp_path / "new" / "fifth"
    folder.mkdir(parents=True)
    for n in range(6):
        shutil.copy(data / f"open_test_4_{n}.png", folder / f"{n}.png")
    return folder


def names(run: Path) -> list[str]:
    return oltr_ext.load(run, device="cpu").class_names


def test_from_a_run_to_a_new_class_in_three_commands(
    run: Path, images: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(data / "open_test_4_8.png")
    asked = ["enroll", str(run), "--name", "fifth", str(images), "--device", "cpu"]
    blob = (run / MODEL).read_bytes()
    assert main([*asked, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("fifth: would be enrolled as class 4 from 6 images; ")
    assert "nearest is class " in said.out and "nothing was written" in said.err
    assert (run / MODEL).read_bytes() == blob
    assert main(asked) == 0
    assert capsys.readouterr().out.startswith("fifth: enrolled as class 4 from 6 images; ")
    assert main(["classes", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["id", "name", "origin", "images", "when"]
    assert lines[1].split() == ["0", "class", "0", "trained", "14", "-"]
    assert lines[5].split()[:4] == ["4", "fifth", "enrolled", "6"]
    assert main(["predict", str(run), other, "--json", "--device", "cpu", "--nearest", "5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "fifth" in [name for name, _ in found["nearest"]]
    assert main(["eval", str(run), "--device", "cpu", "--out", str(run / "judged")]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].endswith("enrolled")
    assert "1 enrolled class: " in said.err


def test_classes_are_renamed_removed_and_brought_back(
    run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["enroll", str(run), "--name", "fifth", str(images)]) == 0
    capsys.readouterr()
    for words, told, after in (
        (["--rename", "fifth", "5"], "fifth is 5 now", "5"),
        (["--undo"], "5 is fifth now", "fifth"),
        (["--remove", "fifth"], "fifth is no class any more", None),
        (["--undo"], "fifth is a class again", "fifth"),
        (["--rename", "class 0", "zero"], "class 0 is zero now", "fifth"),
    ):
        assert main(["classes", str(run), *words, "--json"]) == 0
        said = capsys.readouterr()
        assert said.err.splitlines() == [told]
        listed = [json.loads(line) for line in said.out.splitlines()]
        assert [c["name"] for c in listed][4:] == ([] if after is None else [after])
    assert names(run)[0] == "zero"
    more = [str(images / "0.png"), str(images / "1.png")]
    assert main(["enroll", str(run), "--name", "fifth", *more, "--more", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["id"], found["images"]) == ("fifth", 4, 2)
    assert main(["classes", str(run), "--undo"]) == 0
    assert capsys.readouterr().err == "fifth is of 6 images, not of 8\n"


def test_names_from_a_table_and_from_folders(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "groups.csv"
    table.write_text(
        "path,group,name\n"
        "new/fifth/0.png,1,eins\n"  # beside the table
        f"{images / '1.png'},1,eins\n"
        "new/fifth/2.png,2,\n"
        'new/fifth/3.png,3,"zwei, drei"\n',
        encoding="utf-8-sig",
    )
    assert main(["enroll", str(run), "--from", str(table), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(c["name"], c["id"], c["images"]) for c in found] == [
        ("eins", 4, 2),
        ("zwei, drei", 5, 1),
    ]
    assert main(["enroll", str(run), "--from", str(tmp_path / "new")]) == 0
    assert names(run)[4:] == ["eins", "zwei, drei", "fifth"]


def test_an_image_that_is_in_a_table_twice(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "groups.csv"
    table.write_text(
        f'path,name\nnew/fifth/0.png,"barn\n owl"\n{images / "0.png"},barn owl\n'
        "new/fifth/1.png,barn owl\n"
    )
    asked = ["enroll", str(run), "--from", str(table), "--json"]
    assert main([*asked, "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["images"]) == ("barn owl", 2)
    table.write_text("path,name\nnew/fifth/0.png,owl\nnew/fifth/1.png,owl\nnew/fifth/0.png,jay\n")
    assert main(asked) == 1
    assert "0.png is owl in line 2 and jay in line 4: expected one" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="file systems of UTF-8")
def test_a_table_of_files_whose_names_are_no_text(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(images / "0.png", os.fsdecode(os.fsencode(images) + b"/\xff.png"))
    table = tmp_path / "groups.csv"
    asked = ["enroll", str(run), "--from", str(table), "--json"]
    table.write_bytes(b"path,name\nnew/fifth/\xff.png,eins\nnew/fifth/\xfe.png,\n")
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1
    for content, message in (
        (b"path,name\nnew/fifth/1.png,K\xe4fer\n", f"{table}:2: the name is not UTF-8 text"),
        ("path,name\nnew/fifth/1.png,zwei\n".encode("utf-16"), f"{table} is not UTF-8 text"),
    ):
        table.write_bytes(content)
        assert main(asked) == 1 and capsys.readouterr().err == f"oltr: {message}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "class 1", "GOOD"], "'class 1' is a trained class"),
        (["--name", "new", "GOOD", "BAD", "nowhere.png"], "for 2 cannot be read: cannot read"),
        (["--name", "new"], "expected images of it after its name"),
        (["--name", "new", "EMPTY"], "holds no image"),
        (["--name", "new", "GOOD", "--name", "class 0", "GOOD"], "'class 0' is a trained class"),
        (["--name", " ", "GOOD"], "expected a name"),
        ([], "nothing to enroll"),
        (["--from", "EMPTY"], "has no folders"),
        (["--from", "nowhere.csv"], "no file nowhere.csv"),
        (["--from", "OTHER"], "expected columns path and name, got path, label"),
        (["--from", "NAMELESS"], "gives no image a name"),
        (["--name", "new", "rows.npy"], "no file rows.npy"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(
    finished: Path,
    data: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "other.csv").write_text("path,label\na.png,3\n")
    (tmp_path / "nameless.csv").write_text("path,name\na.png,\n")
    places = {
        "GOOD": data / "open_test_4_0.png",
        "BAD": tmp_path / "bad.png",
        "EMPTY": tmp_path / "empty",
        "OTHER": tmp_path / "other.csv",
        "NAMELESS": tmp_path / "nameless.csv",
    }
    blob = (finished / MODEL).read_bytes()
    asked = ["enroll", str(finished), *(str(places.get(word, word)) for word in words)]
    assert main(asked) == 1
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1
    assert any(part in told.err for part in message.split("|"))
    assert (finished / MODEL).read_bytes() == blob


def test_embedding_by_the_run_goes_on_as_before(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "embedded"
    assert main(["embed", str(run), "--out", str(out)]) == 0
    manifest = (out / "manifest.json").read_bytes()
    assert main(["enroll", str(run), "--name", "fifth", str(images)]) == 0
    blob = (run / MODEL).read_bytes()
    assert main(["embed", str(run), "--out", str(out)]) == 0  # done already, by the same weights
    assert (out / "manifest.json").read_bytes() == manifest
    assert (run / MODEL).read_bytes() == blob and names(run)[4:] == ["fifth"]
    capsys.readouterr()


def test_of_classes_too(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blob = (finished / MODEL).read_bytes()
    for words, message in (
        (["--rename", "class 7", "x"], "no class 'class 7' among the 4; did you mean class "),
        (["--rename", "class 1", "class 2"], "'class 2'"),
        (["--remove", "class 1", "x"], "no class 'x' among the 4"),
        (["--undo"], "nothing to undo"),
    ):
        assert main(["classes", str(finished), *words]) == 1
        assert message in capsys.readouterr().err
    assert (finished / MODEL).read_bytes() == blob
    assert main(["classes", str(finished / "none")]) == 1
    assert "no run" in capsys.readouterr().err


def test_a_run_on_embeddings_takes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_on_rows(tmp_path)
    np.save(tmp_path / "d.npy", rows("d", 4))
    np.save(tmp_path / "both.npy", np.concatenate([rows("d", 2), rows("e", 3)]))
    assert main(["enroll", str(run), "--name", "d", str(tmp_path / "d.npy")]) == 0
    table = tmp_path / "groups.csv"
    table.write_text("path,name\nboth.npy[2],e\nboth.npy[3],e\nboth.npy[4],e\nboth.npy[0],\n")
    assert main(["enroll", str(run), "--from", str(table)]) == 0
    capsys.readouterr()
    held = oltr_ext.load(run, device="cpu")
    assert [(c.name, c.images) for c in held.classes[8:]] == [("d", 4), ("e", 3)]
    with torch.no_grad():
        seen = row_features(held.trained, np.concatenate([rows("d", 4), rows("e", 3)]))
        torch.testing.assert_close(held.trained.enrolment.features, next(seen)[1])
    table.write_text("path,name\nboth.npy[5],f\n")
    assert main(["enroll", str(run), "--from", str(table)]) == 1
    assert "both.npy[5]: expected a row of (N, D), got (5, 32)" in capsys.readouterr().err
