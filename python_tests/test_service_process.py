"""`oltr serve` as a process: how it starts, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from served import png, until

from oltr_ext.cli import main
from oltr_ext.service import run as service_run

ENDS = [each for each in ("SIGTERM", "SIGINT") if hasattr(signal, each)]


@contextmanager
def started(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and its address."""
    command = [sys.executable, "-m", "oltr_ext", "serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=os.getcwd())
    assert process.stderr is not None
    try:
        yield process, process.stderr.readline()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ENDS)
def test_what_was_asked_before_the_end_is_answered(finished, name):
    with started(finished, "--wait-ms", "700", "--batch", "64") as (process, line):
        url = re.match(r"(http://127\.0\.0\.1:\d+) answers by .*, 4 classes\n", line)[1]
        with httpx.Client(base_url=url, trust_env=False) as client, ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(client.post, "/predict", content=png()) for _ in range(4)]
            until(lambda: "oltr_queue_length 4" in client.get("/metrics").text)
            process.send_signal(getattr(signal, name))
            replies = [each.result() for each in asked]
        assert [reply.status_code for reply in replies] == [200] * 4
        assert process.wait(10) == 0
        assert process.stderr.read() == "all that was asked is answered\n"


def test_what_others_can_reach_is_said(finished, monkeypatch):
    said = []
    monkeypatch.setattr(service_run.uvicorn.Server, "run", lambda self, sockets: sockets[0].close())
    service_run.serve(finished, host="0.0.0.0", port=0, device="cpu", say=said.append)
    assert said[0].startswith("http://0.0.0.0:") and said[1].startswith("warning: 0.0.0.0 may be")
    service_run.serve(finished, port=0, device="cpu", say=said.append)
    assert len(said) == 5 and said[3].startswith("http://127.0.0.1:")


def test_what_keeps_it_from_starting_is_said(finished, tmp_path, capsys):
    with started(finished) as (_, line):
        port = re.search(r":(\d+) ", line)[1]
        assert main(["serve", str(finished), "--port", port]) == 1
    assert capsys.readouterr().err.startswith(f"oltr: cannot listen on 127.0.0.1:{port}: ")
    for words, told in (
        ([str(tmp_path)], "is no finished run"),
        ([str(finished), "--limit", "image=3"], "--limit image=3: expected one of body, held"),
        ([str(finished), "--limit", "images=x"], "--limit images=x: expected a number"),
        ([str(finished), "--limit", "images=999"], "limits.queue: expected at least the 999"),
        ([str(finished), "--host", "203.0.113.1"], "cannot listen on 203.0.113.1:8000: "),
    ):
        assert main(["serve", *words, "--device", "cpu"]) == 1
        assert told in capsys.readouterr().err


def test_without_the_extra(run_python, finished):
    said = run_python(
        "import sys\n"
        "for name in ('starlette', 'uvicorn'): sys.modules[name] = None\n"
        "import contextlib, io\n"
        "from oltr_ext.cli import main\n"
        "with contextlib.redirect_stderr(io.StringIO()) as err:\n"
        f"    assert main(['serve', {str(finished)!r}]) == 1\n"
        "print(err.getvalue())"
    )
    assert "pip install oltr_ext[web]" in said


@pytest.mark.parametrize(
    "words", [("--port", "99999"), ("--batch", "0"), ("--wait-ms", "-5"), ("--wait-ms", "nan")]
)
def test_numbers_that_cannot_be_are_refused(finished, capsys, words):
    with pytest.raises(SystemExit) as stop:  # 99999 would listen on 34463
        main(["serve", str(finished), *words])
    assert stop.value.code == 2
    assert f"argument {words[0]}: must be" in capsys.readouterr().err
