"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import threading

import pytest

from oltr_ext._files import write_whole, written


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "not" / "there" / "a.csv"
    with written(path, "w", encoding="utf-8", newline="") as file:
        file.write("ü\n")
        assert names(path.parent) == [".a.csv.tmp"]
    assert path.read_bytes() == "ü\n".encode() and names(path.parent) == ["a.csv"]
    with written(path, before=path.with_name("old")) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == "ü\n".encode()
    assert path.read_bytes() == b"new" and path.with_name("old").read_bytes() == "ü\n".encode()


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("at", ["write", "fsync", "replace"])
def test_an_error_changes_nothing_and_leaves_nothing(tmp_path, monkeypatch, at, error):
    write_whole(tmp_path / "a", b"old")

    def fail(*_):
        raise error("no space left on device")

    if at != "write":
        monkeypatch.setattr(os, at, fail)
    with pytest.raises(error), written(tmp_path / "a", before=tmp_path / "b") as file:
        file.write(b"half")
        if at == "write":
            fail()
    monkeypatch.undo()
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_what_a_kill_left_is_written_over(tmp_path):
    (tmp_path / ".a.tmp").write_bytes(b"much longer than what comes")
    write_whole(tmp_path / "a", b"new", sync=False)
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"new"


def test_several_that_write_at_once_do_not_meet(tmp_path):
    begun = threading.Barrier(4)

    def write(number):
        with written(tmp_path / "a", several=True) as file:
            file.write(bytes([number]) * 500)
            begun.wait(timeout=60)  # all have written half
            file.write(bytes([number]) * 500)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = (tmp_path / "a").read_bytes()
    assert held in [bytes([number]) * 1000 for number in range(4)] and names(tmp_path) == ["a"]
