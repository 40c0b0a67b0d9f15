"""One of several processes is lost, wherever it is: the others end and name it, and the run goes on
from its last checkpoint by the same command."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import yaml
from pair import in_float64, in_processes, near, settings

from oltr_ext.cli import main
from oltr_ext.engine import attendance, checkpoint, distributed, train
from oltr_ext.models import OLTRModel

PROCESSES = 3
PHASES = {  # who is lost there, how, and from where on the run then goes on: stage and step
    "forward": (1, "killed", (1, 1)),
    "load": (2, "killed", (1, 1)),
    "backward": (2, "killed", (1, 1)),
    "step": (1, "raised", (1, 1)),
    "save": (0, "killed", (1, 1)),
    "validation": (1, "killed", (1, 1)),
    "entry": (2, "killed", (1, 2)),
}
FAR = ("backward", "save")  # phases in which the others are on another machine


@contextlib.contextmanager
def _lost(phase, rank):
    """This process is lost in a phase, if it is the one."""
    who, how, _ = PHASES.get(phase, (None, None, None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attendance, "BEAT", 0.1)
        patch.setattr(attendance, "SILENT", 10)  # a second, for machines that are busy
        if phase in FAR and rank == who:
            patch.setattr(attendance.socket, "gethostname", lambda: "far")
        if rank != who:
            yield
            return

        wrote, write = threading.Event(), attendance.Attendance._write

        def watched(self, **named):
            write(self, **named)
            wrote.set()

        patch.setattr(attendance.Attendance, "_write", watched)

        def end():
            if how == "raised":
                raise RuntimeError("no more memory")
            for _ in range(2 * (phase in FAR)):  # the second note says that it is here
                wrote.clear()
                wrote.wait(10)
            os.kill(os.getpid(), signal.SIGKILL)

        def ended_by(owner, name, when=lambda *arguments: True):
            function = getattr(owner, name)

            def instead(*arguments, **named):
                return end() if when(*arguments) else function(*arguments, **named)

            patch.setattr(owner, name, instead)

        if phase == "forward":
            steps = iter(range(9))
            trained = lambda model, images: model.training and next(steps) == 1  # noqa: E731
            ended_by(OLTRModel, "features", trained)
        elif phase == "backward":
            features = OLTRModel.features

            def doomed(self, images):
                made = features(self, images)
                if self.training:
                    made.register_hook(lambda grad: end())
                return made

            patch.setattr(OLTRModel, "features", doomed)
        elif phase == "step":
            ended_by(train._Run, "step", lambda run, *_: run.state.step == 1)
        elif phase == "save":
            last = lambda source, target: str(target).endswith(checkpoint.LAST)  # noqa: E731
            ended_by(os, "replace", last)
        else:
            owner, name = {
                "load": (checkpoint, "load_latest"),
                "validation": (train, "collect"),
                "entry": (train, "hand_over"),
            }[phase]
            ended_by(owner, name)
        yield


def _run(rank, phase, port, path, out, number):
    """Exit code of `oltr train` in one of the processes, and what it says of errors."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number))
    os.environ.update(MASTER_ADDR="localhost", TORCHELASTIC_USE_AGENT_STORE="True")
    os.environ["MASTER_PORT"] = str(port)
    said = io.StringIO()
    with in_float64(), _lost(phase, rank), contextlib.redirect_stderr(said):
        try:
            code = main(["train", str(path), "--out", str(out)])
        except SystemExit as stop:
            code = stop.code
    return code, [line for line in said.getvalue().splitlines() if line.startswith("oltr: ")]


def _forked(rank, phase, port, path, out, number):
    """As `_run`, in a process of its own; of one that is killed the number and the signal."""
    told = out.parent / f"told_{rank}"
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code, lines = _run(rank, phase, port, path, out, number)
            told.write_text(json.dumps(lines))
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return pid, -os.WTERMSIG(status)
    return os.WEXITSTATUS(status), json.loads(told.read_text())


def _all_phases(rank, ports, path, out):
    """Each process of one phase after the other, and what process 0 then finds in the folder; at
    last two processes end the run."""
    found = []
    for phase, port in zip(PHASES, ports, strict=False):
        ended = _forked(rank, phase, port, path, out, PROCESSES)
        state = left = None
        if rank == 0:
            state = checkpoint.load_latest(out)[1]["state"]
            left = [f.name for f in out.iterdir() if f.name.endswith((".tmp", ".damaged"))]
        found.append((*ended, state, left))
    return found, _forked(rank, None, ports[-1], path, out, 2) if rank < 2 else None


def _store():
    return dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)


def test_a_run_outlives_its_processes(data, tmp_path):
    run = settings(data, "memory", distributed={"classes": "all", "timeout": 60})
    twelve = {"batch_size": 12}
    stages = {k: getattr(run, k).model_copy(update=twelve) for k in ("stage1", "stage2")}
    run = run.model_copy(update={**stages, "checkpoint_every": 1})
    path, out = tmp_path / "run.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(run.model_dump(mode="json")))
    out.mkdir()
    stores = [_store() for _ in range(len(PHASES) + 1)]
    ports = [store.port for store in stores]
    members = in_processes(PROCESSES, _all_phases, ports, path, out)
    here = attendance.socket.gethostname()
    for (phase, (who, how, kept)), *found in zip(
        PHASES.items(), *(f for f, _ in members), strict=True
    ):
        lines = [line for code, said, *_ in found if isinstance(said, list) for line in said]
        assert len(lines) == 1, (phase, found)
        rest = [ended[0] for rank, ended in enumerate(found) if rank != who or how == "raised"]
        assert rest == [1] * len(rest), (phase, found)
        if how == "raised":
            assert lines == [f"oltr: process {who} of 3: no more memory"]
        else:
            pid, by = found[who][:2]
            assert by == -signal.SIGKILL, (phase, found)
            host, ended = ("far", "went silent") if phase in FAR else (here, "ended without a word")
            named = f"oltr: process {who} of 3 (pid {pid} on {host}, last seen in "
            assert lines[0].startswith(named), (phase, lines)
            assert f") {ended}: process " in lines[0], (phase, lines)
            place = {"save": "engine.checkpoint.save", "backward": "engine.train.step"}.get(phase)
            assert place is None or f"last seen in {place})" in lines[0], (phase, lines)
            assert not attendance._runs(pid)
        state, left = found[0][2:]
        assert (state["stage"], state["step"]) == kept, phase
        assert left in ([], [f".{checkpoint.LAST}.tmp"]), (phase, left)
    assert [ended for _, ended in members] == [(0, []), (0, []), None]
    assert not [file.name for file in out.iterdir() if file.name.endswith(".tmp")]
    with in_float64():
        train.train(run, tmp_path / "whole")
    near(tmp_path / "whole", out)


# What is said of whom, from notes in a store.


class _Others:
    """The notes of processes 1 and 2, as they would have them."""

    def __init__(self, store):
        self.store = store
        self.note = {"host": "far", "machine": "far", "pid": 7, "beats": 1, "left": False}
        self.note |= {"at": "engine.train.step", "waits": True}

    def write(self, rank, **changes):
        self.store.set(attendance._key(str(rank)), json.dumps({**self.note, **changes}))


@pytest.fixture
def meeting():
    store = _store()
    own = attendance.Attendance(store, 0, 3, patience=1.0)
    others = _Others(store)
    for rank in (1, 2):
        others.write(rank)
    read, beats = own._read, itertools.count(1)

    def alive(*ranks, **changes):
        """These go on writing."""

        def after():
            beat = next(beats)
            for rank in ranks:
                others.write(rank, beats=beat, **changes)
            return read()

        own._read = after
        return own

    yield others, alive
    own.close()


IN_TIME, LATE = RuntimeError("Connection closed by peer"), RuntimeError("Timed out waiting 9ms")


def test_who_is_missing_is_told_from_the_notes(meeting):
    others, alive = meeting
    words = "process 2 of 3 (pid 7 on far, last seen in engine.train.step) went silent"
    assert alive(1).missing(IN_TIME) == words
    assert alive(1).missing(IN_TIME, wait=False) is None  # as of an error that is one's own
    assert alive(1, 2).missing(IN_TIME) is None
    assert alive(1, 2).missing(LATE) is None  # all wait: nobody's fault
    late = alive(1, 2, waits=False, at="engine.checkpoint.save")
    assert late.missing(IN_TIME) is None  # it may yet come
    words = "processes 1, 2 of 3 (pid 7 on far, last seen in engine.checkpoint.save; pid 7 on far, "
    assert late.missing(LATE).startswith(words)
    assert late.missing(LATE).endswith(" did not come within 1 s")
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    others.write(2, machine=attendance._machine(), pid=ended.pid)
    assert alive(1).missing(IN_TIME, wait=False).endswith(") ended without a word")
    others.write(2, left=True)  # who failed too is not missed
    assert alive(1).missing(IN_TIME) is None
    others.store.delete_key(attendance._key("1"))
    assert alive().missing(LATE) == "process 1 of 3 did not join within 1 s"


def test_one_alone_tells_and_the_others_wait_for_it():
    store = _store()
    first, second = (attendance.Attendance(store, rank, 2, patience=1.0) for rank in (0, 1))
    assert first.first_to_fail()
    first.told()
    start = time.monotonic()
    assert not second.first_to_fail()
    assert time.monotonic() - start < first._look
    assert json.loads(store.get(attendance._key("0")))["left"]


def test_a_store_that_does_not_answer_is_not_waited_for():
    def never():
        time.sleep(5)
        return "late"

    def fails():
        raise RuntimeError("the store is gone")

    assert attendance._within(0.05, never, "none") == "none"
    assert attendance._within(5, fails, "none") == "none"
    assert attendance._within(5, lambda: "found", "none") == "found"


def test_an_error_of_a_collective_is_told_from_others():
    def caught(call):
        try:
            call()
        except Exception as error:
            return attendance.in_collective(error)

    store = _store()
    store.set_timeout(timedelta(milliseconds=1))
    assert caught(lambda: dist.all_reduce(torch.zeros(1)))  # there is no group
    assert not caught(lambda: torch.zeros(1).view(3))


def test_a_process_that_is_asked_to_end_says_so():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(distributed._Terminated, match="SIGTERM"), distributed._told_to_end():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN  # it ends already
        signal.signal(signal.SIGTERM, before)
        with distributed._told_to_end():
            pass
        assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGTERM, before)
