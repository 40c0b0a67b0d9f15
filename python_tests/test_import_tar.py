"""`oltr data from-tar`: WebDataset's shards, and archives that are not what they should be."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
from photos import encoded, listed, tree

from oltr_ext.cli import main
from oltr_ext.config.loading import load_config
from oltr_ext.engine.verify import check_data


def run(out, *words):
    return main(["data", "from-tar", *map(str, words), "--out", str(out)])


def shard(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(rows, label="cls"):
    for n, name in rows:
        yield f"dir/{n:04d}.jpg", encoded(n, "JPEG")
        yield f"dir/{n:04d}.{label}", name.encode()


ROWS = [(n, str(n % 3)) for n in range(24)]


def test_shards_that_train(tmp_path, capsys):
    one = shard(tmp_path / "a-000.tar", samples(ROWS[:12]))
    two = shard(tmp_path / "a-001.tar.gz", samples(ROWS[12:]), "w:gz")
    (tmp_path / "names.txt").write_text("fox\nowl\nbee\n")
    assert run(tmp_path / "set", one, two, "--names", tmp_path / "names.txt") == 0
    assert (tmp_path / "set" / "names.txt").read_text() == "bee\nfox\nowl\n"
    files = tree(tmp_path / "set" / "images")
    assert sorted(files.values()) == sorted(encoded(n, "JPEG") for n, _ in ROWS)
    assert check_data(load_config(str(tmp_path / "set" / "data.yaml")).data).problems == []
    parts = [dict(listed(tmp_path / "set", part)) for part in ("train", "val", "test")]
    found = {path: name for part in parts for path, name in part.items()}
    want = {encoded(n, "JPEG"): ("fox", "owl", "bee")[n % 3] for n, _ in ROWS}
    assert {files[path]: name for path, name in found.items()} == want
    again = tree(tmp_path / "set")
    assert run(tmp_path / "set", one, two, "--names", tmp_path / "names.txt") == 0
    assert tree(tmp_path / "set") == again
    many = shard(tmp_path / "many.tar", samples((n, str(n % 11)) for n in range(33)))
    assert run(tmp_path / "many", f"train={many}", "--test", 1) == 0
    numbers = (tmp_path / "many" / "names.txt").read_text().split()
    assert numbers == [str(n) for n in range(11)]  # as numbers, not as words


def test_labels_in_json_and_observations(tmp_path, capsys):
    def members():
        for n in range(20):
            about = {"label": f"name {n % 2}", "seq": n // 4}
            yield f"{n}.json", json.dumps(about).encode()
            yield f"{n}.seg.PNG", encoded(n)

    path = shard(tmp_path / "a.tar", members())
    assert run(tmp_path / "set", path, "--observation-key", "seq") == 0
    assert "\n5 observations\n" in capsys.readouterr().out
    assert (tmp_path / "set" / "names.txt").read_text() == "name 0\nname 1\n"


def test_members_that_mean_harm(tmp_path, capsys):
    evil = tmp_path / "in" / "evil.tar"
    evil.parent.mkdir()
    with tarfile.open(evil, "w") as tar:
        for n, name in enumerate(("/abs/x", "../../up", "dir/../y", "plain", "two\nlines")):
            for suffix, content in (("jpg", encoded(n, "JPEG")), ("cls", b"a \n b")):
                info = tarfile.TarInfo(f"{name}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        for n, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"link{n}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ("noext", ".hidden", "9.cls"):
            tar.addfile(tarfile.TarInfo(name))
    before = {p for p in tmp_path.rglob("*")}
    assert run(tmp_path / "in" / "set", evil) == 0
    said = capsys.readouterr().out
    assert "5 images of 1 known class" in said
    assert "members that are no files (links, devices): 3" in said
    assert "members without a name or suffix: 2" in said and "samples of no image: 1" in said
    made = {p for p in tmp_path.rglob("*")} - before
    assert all(p.is_relative_to(tmp_path / "in" / "set") for p in made)
    assert (tmp_path / "in" / "set" / "names.txt").read_text() == "a b\n"


@pytest.mark.parametrize("where", ["data", "between", "gzip", "garbage"])
def test_a_shard_that_breaks_off(tmp_path, capsys, where):
    whole = shard(
        tmp_path / "w.tar", samples(ROWS), "w:gz" if where == "gzip" else "w"
    ).read_bytes()
    with tarfile.open(tmp_path / "w.tar") as tar:
        ninth = tar.getmembers()[18]
    cut = {
        "data": whole[: ninth.offset_data + 100],
        "between": whole[: ninth.offset],
        "gzip": whole[: len(whole) // 2],
        "garbage": whole[: ninth.offset] + b"\xff" * 2048,
    }[where]
    (tmp_path / "w.tar").write_bytes(cut)
    assert run(tmp_path / "set", tmp_path / "w.tar") == 0
    said = capsys.readouterr().out
    assert "left out, unreadable: 1 (w.tar: breaks off, or is damaged: " in said
    if where != "gzip":
        assert said.startswith("9 images of 3 known classes")


def test_errors(tmp_path, capsys):
    (tmp_path / "t.tar").write_text("no archive")
    path = shard(tmp_path / "a.tar", samples(ROWS))
    (tmp_path / "names.txt").write_text("fox\nowl\n")
    for words, error in (
        ((tmp_path / "t.tar",), "no image that can be read and has a class (t.tar: unreadable"),
        ((tmp_path / "gone.tar",), "no file"),
        ((path, "--names", tmp_path / "names.txt"), "expected a class from 0 to 1, got 2"),
        ((path, "--label-part", "txt"), "a.tar:dir/0000.jpg: without a class"),
    ):
        assert run(tmp_path / f"set{len(error)}", *words) == 1
        assert error in capsys.readouterr().err


def test_a_folder_of_shards_a_range_and_no_class(tmp_path, capsys):
    (tmp_path / "in" / "test").mkdir(parents=True)
    shard(tmp_path / "in" / "train-000.tar", samples(ROWS[:12]))
    shard(tmp_path / "in" / "train-001.tgz", samples(ROWS[12:]), "w:gz")
    last = samples([(50 + n, str(n - 1)) for n in range(4)])
    shard(tmp_path / "in" / "test" / "000.tar", last)
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "names.txt").write_text("fox\nowl\nbee\n")
    assert run(tmp_path / "set", tmp_path / "in", "--names", tmp_path / "names.txt") == 0
    assert len(listed(tmp_path / "set", "test")) == 3  # the fourth is of none
    assert "left out, without a class: 1 (000.tar:dir/0050.jpg)" in capsys.readouterr().out
    (tmp_path / "in" / "train-001.tgz").rename(tmp_path / "in" / "train-001.tar")
    ranged = f"train={tmp_path}/in/train-{{000..001}}.tar"
    assert run(tmp_path / "range", ranged, f"test={tmp_path}/in/te*/*.tar") == 0
    assert "24 images" not in capsys.readouterr().out
    assert len(listed(tmp_path / "range", "test")) == 3
    (tmp_path / "none").mkdir()
    for gone, error in ((tmp_path / "none", "has no file of .tar"), ("train=x*.tar", "no file x*")):
        assert run(tmp_path / "no", gone) == 1
        assert error in capsys.readouterr().err


def test_a_mistyped_key_says_what_is_there_and_the_same_folder_is_taken_then(tmp_path, capsys):
    def members():
        for n in range(12):
            yield f"{n}.json", json.dumps({"kind": f"name {n % 2}", "seq": n}).encode()
            yield f"{n}.png", encoded(n)

    path = shard(tmp_path / "a.tar", members())
    assert run(tmp_path / "set", path) == 1
    said = capsys.readouterr().err
    assert "a.tar:0 has no class: there are json, png, in its JSON kind, seq" in said
    assert (tmp_path / "set" / "images").is_dir()
    assert run(tmp_path / "set", path, "--label-key", "kind") == 0
    assert (tmp_path / "set" / "names.txt").read_text() == "name 0\nname 1\n"
    files = tree(tmp_path / "set" / "images")
    assert sorted(files.values()) == sorted(encoded(n) for n in range(12))
