"""Checkpoints: exact, atomic, and damaged files are told from whole ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from oltr_ext.engine.checkpoint import (
    CheckpointError,
    OtherMakeError,
    load,
    load_latest,
    save,
    save_last,
)

TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3).T,
    "half": torch.tensor([1.5, float("inf")], dtype=torch.bfloat16),
    "n": torch.tensor(7),
    "none": torch.empty(0, 3),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "shared": torch.arange(5, dtype=torch.uint8),
}
TENSORS["shared"] = TENSORS["bytes"]
HEADER = {"state": {"step": 3, "loss": 0.1 + 0.2}, "names": ["ü", "b"]}


def test_round_trip_is_exact(tmp_path):
    save(tmp_path / "deep" / "x.safetensors", TENSORS, HEADER)
    tensors, header = load(tmp_path / "deep" / "x.safetensors")
    assert header == HEADER
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value)


@pytest.fixture(scope="module")
def blob(tmp_path_factory):
    path = tmp_path_factory.mktemp("c") / "x.safetensors"
    save(path, TENSORS, HEADER)
    return path, path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_damage_is_found(blob, data):
    path, good = blob
    cut = data.draw(st.integers(0, len(good) - 1))
    bad = path.with_name("bad.safetensors")
    bad.write_bytes(good[:cut])
    with pytest.raises(CheckpointError, match=r"bad\.safetensors"):
        load(bad)
    flipped = bytearray(good)
    flipped[cut] ^= 1 << data.draw(st.integers(0, 7))
    bad.write_bytes(flipped)
    try:
        tensors, header = load(bad)
    except CheckpointError as error:
        assert "bad.safetensors" in str(error)
    else:  # only where the flip does not change the content, such as padding of the JSON
        assert header == HEADER and all(torch.equal(tensors[k], v) for k, v in TENSORS.items())


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"x": []}',
        b'{"x": {}}',
        b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [4611686018427387904, 8], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "y": {"dtype": "F32", '
        b'"shape": [1], "data_offsets": [0, 4]}}',  # one upon the other
    ],
)
def test_a_header_that_says_what_cannot_be_is_damage(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=r"x\.safetensors is truncated or damaged"):
        load(path)


def test_foreign_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint of oltr_ext"):
        load(tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load(tmp_path / "none.safetensors")


def test_damaged_last_falls_back_to_previous(tmp_path):
    assert load_latest(tmp_path) is None
    for step in (1, 2, 3):
        save_last(tmp_path, {"x": torch.tensor(step)}, {"step": step})
    last = tmp_path / "last.safetensors"
    assert load_latest(tmp_path)[1] == {"step": 3}
    last.write_bytes(last.read_bytes()[:-3])
    tensors, header, problems = load_latest(tmp_path)
    assert header == {"step": 2} and tensors["x"] == 2
    assert len(problems) == 1 and "last.safetensors is truncated or damaged" in problems[0]
    # the damaged file must not displace the good one at the next save
    save_last(tmp_path, {"x": torch.tensor(4)}, {"step": 4})
    last.write_bytes(b"")
    assert load_latest(tmp_path)[1] == {"step": 2}


def test_a_file_of_another_make_stays_where_it_is(tmp_path, monkeypatch):
    save_last(tmp_path, {"x": torch.zeros(2)}, {"state": {}})
    before = (tmp_path / "last.safetensors").read_bytes()
    monkeypatch.setattr("oltr_ext.engine.checkpoint.FORMAT", 2)
    for _ in range(2):
        with pytest.raises(OtherMakeError, match="written by another version"):
            load_latest(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"last.safetensors": before}


def test_all_damaged_is_an_error_naming_each(tmp_path):
    for name in ("last", "previous"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"last\.safetensors.*previous\.safetensors"):
        load_latest(tmp_path)


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save(path, {"x": torch.tensor(1)}, {})

    def full(_handle):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save(path, {"x": torch.tensor(2)}, {})
    monkeypatch.undo()
    assert load(path)[0]["x"] == 1
    save_last(tmp_path, {"x": torch.tensor(1)}, {})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_last(tmp_path, {"x": torch.tensor(2)}, {})
    assert load(tmp_path / "last.safetensors")[0]["x"] == 1  # under its own name
    assert not (tmp_path / "previous.safetensors").exists()


def test_kill_at_any_moment_leaves_a_good_state(tmp_path):
    code = (
        "import sys, torch\n"
        "from oltr_ext.engine.checkpoint import save_last\n"
        "for step in range(10**6):\n"
        "    save_last(sys.argv[1], {'x': torch.full((200_000,), step)}, {'step': step})\n"
        "    print(step, flush=True)\n"
    )
    seen = -1
    for pause in (0.0, 0.013, 0.037):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(3):
            seen = int(child.stdout.readline())
        time.sleep(pause)
        child.send_signal(signal.SIGKILL)
        seen = max(seen, *map(int, child.stdout.read().split()), -1)
        child.wait()
        tensors, header, problems = load_latest(tmp_path)
        assert not problems
        assert header["step"] >= seen and (tensors["x"] == header["step"]).all()
        assert len(list(tmp_path.iterdir())) <= 3  # last, previous, at most one temporary
