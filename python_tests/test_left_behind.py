"""A command that fails before it has written anything leaves no folder behind."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import yaml
from tiny import config

from oltr_ext.cli import main
from oltr_ext.data.folders import made_folder
from oltr_ext.serve import export

LISTS = ("train", "val", "test")


@pytest.fixture
def here(data, tmp_path, monkeypatch):
    """An empty folder to work in, and beside it a configuration whose images are no images."""
    (tmp_path / "broken.png").write_bytes(b"none")
    for part in LISTS:
        labels = [line.split()[1] for line in (data / f"{part}.txt").read_text().splitlines()]
        lines = [f"broken.png {label}\n" for label in labels]
        (tmp_path / f"{part}.txt").write_text("".join(lines))
    values = config(data)
    lists = {part: str(tmp_path / f"{part}.txt") for part in LISTS}
    values["data"] = {**values["data"], "root": str(tmp_path), **lists}
    del values["data"]["open_val"], values["data"]["open_test"]
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "empty").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("OLTR_EXT_CACHE", str(tmp_path / "work" / "deep" / "cache"))
    return tmp_path / "work"


def fails(here: Path, *asked: object) -> None:
    assert main([str(word) for word in asked]) == 1
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    "asked",
    [
        ("train", "../broken.yaml"),
        ("train", "../broken.yaml", "--out", "a/b/c"),
        ("train", "../broken.yaml", "--set", "stage1.batch_size=999"),
        ("train", "../broken.yaml", "--set", "data.train=nowhere.txt"),
        ("train", "../broken.yaml", "--stage1", "nowhere"),
        ("data", "pack", "../broken.yaml", "--out", "a/pack.npz"),
        ("data", "make", "glyphs", "--source", "nowhere"),
        ("data", "make", "icons-large", "--source", "nowhere"),
        ("data", "from-folder", "../empty", "--out", "a/b"),
        ("data", "from-csv", "nowhere.csv", "--out", "a/b"),
        ("data", "from-cifar", "cifar10", "--root", "nowhere", "--out", "a/b"),
    ],
    ids=" ".join,
)
def test_of_data_and_training(here, asked):
    fails(here, *asked)


def test_of_what_a_run_answers(here, finished, monkeypatch):
    fails(here, "discover", finished, here.parent / "empty", "--out", "a/b")
    fails(here, "eval", finished, "--set", "data.test=nowhere.txt", "--out", "a/b")
    fails(here, "embed", finished, "--set", "data.test=nowhere.txt", "--out", "a/b")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        fails(here, "desk", finished, here.parent, "--port", port, "--out", "a/b")

    def full(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(export.torch.export, "save", full)
    fails(here, "export", finished, "--out", "a/b/model.pt2")


def test_the_demo_trains_over_nobodys_run(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "plain")
    before = (run / "model.safetensors").read_bytes()
    assert main(["demo", "--out", str(tmp_path), "--methods", "plain"]) == 1
    assert f"{run} holds a run with" in capsys.readouterr().err
    assert (run / "model.safetensors").read_bytes() == before


def test_of_folders_made_for_a_block(tmp_path):
    with made_folder(tmp_path / "a" / "b") as new:
        assert new and (tmp_path / "a" / "b").is_dir()
        (tmp_path / "a" / "mine").touch()
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "mine"]
    with made_folder(tmp_path / "a") as new:
        assert not new
        (tmp_path / "a" / "mine").unlink()
    assert (tmp_path / "a").is_dir()  # it was there
