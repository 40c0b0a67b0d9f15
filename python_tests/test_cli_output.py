"""Where the output of the command goes: readers that have gone, full disks, what is in the way."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from oltr_ext.cli import main

MIDDLE = """
import sys
from oltr_ext.cli import commands, main
from oltr_ext.cli.saying import say
commands.run_demo = lambda args: say("first") or 0
sys.exit(main(["demo"]))
"""
GONE = "oltr: stopped, for the reader of its output has gone; the same command goes on from here\n"
FULL = "oltr: no space left on the disk\n"


def told(words, stdout):
    """Exit code and errors of a command with this output, buffered as it is in a shell."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, *words],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("words", "want"),
    [
        (["-m", "oltr_ext", "--help"], (0, "")),
        (["-m", "oltr_ext", "--version"], (0, "")),
        (["-m", "oltr_ext", "methods"], (0, "")),
        (["-c", MIDDLE], (1, GONE)),
    ],
)
def test_a_reader_that_has_gone(words, want):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert told(words, writer) == want
    finally:
        os.close(writer)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
@pytest.mark.parametrize("words", ["--help", "--version", "methods"])
def test_a_full_disk(words):
    with open("/dev/full", "w") as full:
        assert told(["-m", "oltr_ext", words], full) == (1, FULL)


def test_a_file_in_place_of_a_folder(finished, tmp_path, capsys):
    file = tmp_path / "there"
    file.write_text("mine")
    run, line = str(finished), f"oltr: {file} is a file; expected a folder\n"
    for words in (
        ["train", "icons", "--out", str(file / "run")],
        ["train", "icons", "--out", str(file)],
        ["discover", run, run, "--out", str(file)],
        ["eval", run, "--device", "cpu", "--out", str(file)],
    ):
        if words[0] == "discover":
            np.save(tmp_path / "rows.npy", np.ones((2, 256), np.float32))
            words[2] = str(tmp_path / "rows.npy")
        assert main(words) == 1 and capsys.readouterr().err.splitlines()[-1:] == [line.strip()]
    assert file.read_text() == "mine"


def test_a_report_is_not_made_for_a_place_that_is_none(finished, tmp_path, monkeypatch):
    monkeypatch.setattr("oltr_ext.serve.assess.compare", None)  # told before it takes its time
    (tmp_path / "there").write_text("mine")
    assert main(["eval", str(finished), "--out", str(tmp_path / "there")]) == 1


def test_a_folder_in_place_of_a_file(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("oltr_ext.serve.export.traced", None)
    assert main(["export", str(finished), "--out", str(tmp_path)]) == 1
    line = f"oltr: export: expected a file, {tmp_path} is a folder\n"
    assert capsys.readouterr().err == line

    def folder(*_):
        raise IsADirectoryError(errno.EISDIR, "Is a directory", "there")

    monkeypatch.setattr("oltr_ext.cli.commands.run_methods", folder)
    assert main(["methods"]) == 1
    assert capsys.readouterr().err == "oltr: there is a folder; expected a file\n"


@pytest.mark.parametrize("more", [[], ["--set", "0.2"]])
def test_json_of_a_row_that_overflowed(finished, tmp_path, capsys, more):
    np.save(tmp_path / "rows.npy", np.full((1, 256), 3e38, np.float32))
    assert main(["predict", str(finished), str(tmp_path / "rows.npy"), "--json", *more]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line, parse_constant=pytest.fail)
    assert found["unknown"] if more else found["label"] is None and found["confidence"] is None


def test_rows_that_float32_cannot_hold_are_told_in_one_way(finished, tmp_path, capsys):
    np.save(tmp_path / "rows.npy", np.full((1, 256), 1e300))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["predict", str(finished), str(tmp_path / "rows.npy")]) == 1
    assert "expected finite embeddings, got NaN or infinity" in capsys.readouterr().err
