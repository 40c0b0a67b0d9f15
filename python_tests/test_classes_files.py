"""Classes that joined a run: kills, others at work, training, and whatever else reads the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from strangers import KNOWN, SETTINGS, STAGE_1, STRANGERS, rows, train_on_rows

import oltr_ext
from oltr_ext.engine import checkpoint, enrolment
from oltr_ext.serve.assess import assess, compare, report
from oltr_ext.serve.export import ABOUT, export
from oltr_ext.serve.tables import table
from oltr_ext.serve.trained import load_trained

MODEL = "model.safetensors"
ASKED = np.concatenate([rows(name, 4, seed=9) for name in KNOWN + STRANGERS])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_rows(tmp_path_factory.mktemp("classes"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def enrolled(run: Path) -> Path:
    """A run with one class more, and one called otherwise."""
    model = oltr_ext.load(run, device="cpu")
    model.enroll(rows("d", 5), "d")
    model.rename("a", "A")
    model.save()
    return run


def again(run: Path, **settings: Any) -> Path:
    return oltr_ext.train(
        run_of_rows(run), out=run, settings={**SETTINGS, **settings}, say=lambda _: None
    )


def run_of_rows(run: Path) -> Path:
    return Path(checkpoint.load(run / MODEL)[1]["config"]["data"]["root"])


def test_a_kill_at_any_moment_leaves_the_old_classes_or_the_new(run: Path, run_python: Any) -> None:
    """A process is killed on each side of each step of the writing, and within the writing."""
    code = f"""
import os, signal, oltr_ext
from oltr_ext import _files
from oltr_ext.engine import checkpoint
from strangers import rows

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

class Half:
    def __init__(self, file): self.file = file
    def __enter__(self): return self
    def __exit__(self, *_): self.file.close()
    def seek(self, place): self.file.seek(place)
    def write(self, blob): self.file.write(blob[: len(blob) // 2]); self.file.flush(); die()

opened = checkpoint.Path.open
def half(path, mode="r", *how, **named):
    file = opened(path, mode, *how, **named)
    return Half(file) if mode == "wb" else file
points = [("write", checkpoint, die), ("open", checkpoint.Path, half),
          ("fsync", os, die), ("replace", os, die), ("sync_folder", _files, die), (None,) * 3]
for n, (name, where, what) in enumerate(points):
    model = oltr_ext.load({str(run)!r}, device="cpu")
    before = model.class_names
    model.enroll(rows("d", 3, seed=n), f"new {{n}}")
    child = os.fork()
    if child == 0:
        if name: setattr(where, name, what)
        try: model.save()
        finally: os._exit(0)
    killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
    after = oltr_ext.load({str(run)!r}, device="cpu").class_names
    print(name, killed, after == before, after == model.class_names)
"""
    lines = run_python(code, OMP_NUM_THREADS="1").splitlines()
    assert lines == [
        "write True True False",
        "open True True False",
        "fsync True True False",
        "replace True True False",
        "sync_folder True False True",  # it has its name by then
        "None False False True",  # what a kill left keeps nobody from writing
    ]
    assert [p.name for p in run.glob(".model*")] == []


def test_those_who_enrol_wait_for_each_other_and_readers_see_whole_files(
    run: Path, run_python: Any
) -> None:
    code = f"""
import os, oltr_ext
from oltr_ext.serve.enroll import editing, enroll
from oltr_ext.serve.predict import row_features
from strangers import KNOWN, rows

children = []
for who in "xyz":
    child = os.fork()
    if child == 0:
        model = oltr_ext.load({str(run)!r}, device="cpu")
        for n in range(4):
            given = list(row_features(model.trained, rows("d", 2, seed=n)))
            with editing(model.trained, wait=60):
                enroll(model.trained, given, [f"{{who}}{{n}}"] * 2)
        os._exit(0)
    children.append(child)
seen, left = [], set(children)
while left:
    left -= {{child for child in left if os.waitpid(child, os.WNOHANG)[0]}}
    model = oltr_ext.load({str(run)!r}, device="cpu")
    names = model.class_names
    assert names[:8] == KNOWN and len(model.predict(rows("d", 2))) == 2
    assert all(f"{{w}}{{int(n) - 1}}" in names for w, n in names[8:] if n != "0"), names
    seen.append(len(names))
assert seen == sorted(seen), seen
print(sorted(model.class_names[8:]) == [f"{{w}}{{n}}" for w in "xyz" for n in range(4)])
"""
    assert run_python(code, OMP_NUM_THREADS="1").splitlines() == ["True"]


def test_who_cannot_wait_is_told(enrolled: Path) -> None:
    from oltr_ext.engine.lock import BusyError, locked
    from oltr_ext.serve.enroll import save

    model = oltr_ext.load(enrolled, device="cpu")
    model.rename("d", "D")
    blob = (enrolled / MODEL).read_bytes()
    with locked(enrolled, "a test"), pytest.raises(BusyError, match=r"a test .*; wait for it$"):
        save(model.trained, wait=0.1)
    assert (enrolled / MODEL).read_bytes() == blob


def test_training_again_keeps_the_classes(enrolled: Path) -> None:
    blob = (enrolled / MODEL).read_bytes()
    before = oltr_ext.load(enrolled, device="cpu").predict(ASKED)
    again(enrolled)  # finished already
    assert (enrolled / MODEL).read_bytes() == blob
    again(enrolled, **{"open_set.value": 0.5})  # another threshold
    header = checkpoint.load(enrolled / MODEL)[1]
    old = checkpoint.load(enrolled / "best.safetensors")[1]["threshold"]["value"]
    assert header["threshold"]["value"] > old
    model = oltr_ext.load(enrolled, device="cpu")
    assert [c.name for c in model.classes] == ["A", *KNOWN[1:], "d"]
    after = model.predict(ASKED)
    assert after.closed.tolist() == before.closed.tolist()
    assert after.known.sum() < before.known.sum()
    model.undo()
    model.undo()
    assert model.predict(ASKED).label.tolist() == after.label.tolist()


def test_training_afresh_does_not_drop_them(enrolled: Path) -> None:
    blobs = {path.name: path.read_bytes() for path in enrolled.glob("*.safetensors")}
    message = r"has 1 class \(d\) enrolled, which training afresh would remove: choose another"
    with pytest.raises(ValueError, match=message):
        oltr_ext.train(
            run_of_rows(enrolled), out=enrolled, settings=SETTINGS, resume=False, say=lambda _: None
        )
    assert {path.name: path.read_bytes() for path in enrolled.glob("*.safetensors")} == blobs
    for name in ("last", "previous"):
        (enrolled / f"{name}.safetensors").unlink()
    with pytest.raises(ValueError, match=message):
        again(enrolled)
    model = oltr_ext.load(enrolled, device="cpu")
    model.remove("d")
    model.save()
    again(enrolled)
    assert oltr_ext.load(enrolled, device="cpu").class_names == ["A", *KNOWN[1:]]


def test_classes_of_other_weights_are_not_taken_over(enrolled: Path) -> None:
    tensors, header = checkpoint.load(enrolled / MODEL)
    trained = {key: value for key, value in tensors.items() if key.startswith("model.")}

    def carried(weights: Any, header: Any) -> Any:
        learned = checkpoint.under("model.", weights)
        return enrolment.carry(enrolled / MODEL, weights, header, learned)

    kept = carried(trained, {"threshold": None})
    assert enrolment.read(*kept).joined == ["d"] and kept[1]["threshold"] is None
    other = {
        key: value + 1 if value.is_floating_point() else value for key, value in trained.items()
    }
    with pytest.raises(ValueError, match="enrolled under other weights than were trained now"):
        carried(other, header)
    model = oltr_ext.load(enrolled, device="cpu")
    model.remove("d")
    model.save()
    kept = enrolment.read(*carried(other, header))
    assert kept.roster.names == ["A", *KNOWN[1:]] and kept.before is None and len(kept.owner) == 0


def test_stage_1_is_given_away_without_its_classes_and_says_so(tmp_path: Path) -> None:
    first = train_on_rows(tmp_path, "plain")
    model = oltr_ext.load(first, device="cpu")
    model.enroll(rows("d", 3), "d")
    model.save()
    from oltr_ext.config.loading import load_config
    from oltr_ext.engine.train import train

    said: list[str] = []
    root = f"data.root={json.dumps(str(tmp_path / 'rows'))}"
    overrides = [root, *(f"{k}={json.dumps(v)}" for k, v in STAGE_1.items())]
    config = load_config("embeddings", overrides, method="tau-norm")
    train(config, tmp_path / "second", stage1=first, say=said.append)
    assert any("1 class (d) enrolled, which stay with it" in line for line in said)
    assert oltr_ext.load(tmp_path / "second", device="cpu").class_names == KNOWN
    assert oltr_ext.load(first, device="cpu").class_names == [*KNOWN, "d"]


def test_evaluation_judges_the_data_and_the_enrolled_apart(run: Path, enrolled: Path) -> None:
    model = load_trained(enrolled, device="cpu")
    result = assess(model, name="x")
    summary = result.summary
    assert summary["samples"] == {"known": 80, "open": 10}  # ten strangers are none any more
    assert len(summary["closed"]["per_class"]) == 8
    found = summary["enrolled"]
    assert (found["classes"], found["images"], found["known"], found["open"]) == (1, 10, 80, 10)
    # against answers one by one
    said = oltr_ext.load(enrolled, device="cpu")
    test = np.concatenate([rows(name, 10, seed=3) for name in KNOWN])
    d, e = (
        said.predict(np.concatenate([rows("d", 10, 5), rows("e", 10, 5)]))[part]
        for part in (slice(10), slice(10, 20))
    )
    answers = said.predict(test)
    truth = np.repeat(["A", *KNOWN[1:]], 10)
    assert summary["closed"]["overall"] == pytest.approx((answers.closed == truth).mean())
    assert found["closed"] == pytest.approx((d.closed == "d").mean())
    assert found["right"] == pytest.approx((d.label == "d").mean())
    assert found["known_taken"] == (answers.label == "d").sum()
    assert found["open_taken"] == (e.label == "d").sum()
    point = summary["scores"]["max_logit"]["operating_points"]["calibrated"]
    assert point["open_rejected"] == pytest.approx((~e.known).mean())
    assert any("10 open images bear their names" in line for line in result.notes)


def test_an_enrolled_answer_is_wrong_for_the_datas_images(run: Path) -> None:
    model = oltr_ext.load(run, device="cpu")
    model.enroll(rows("b", 10, seed=3), "b again")  # test images of b, under another name
    model.save()
    result = assess(load_trained(run, device="cpu"), name="x")
    taken = result.summary["enrolled"]["known_taken"]
    assert taken >= 5 and result.summary["enrolled"]["images"] == 0
    assert result.summary["closed"]["per_class"][1] <= 0.5
    files = report([result], run / "report.html")
    assert "b again" in files.html.read_text() or "b again" in files.json.read_text()


def test_runs_are_compared_on_the_same_images(
    trained: Path, enrolled: Path, tmp_path: Path
) -> None:
    pair = [load_trained(path, device="cpu") for path in (trained, enrolled)]
    first, second = compare(pair, ["before", "after"])
    assert first.summary["samples"] == second.summary["samples"] == {"known": 80, "open": 10}
    assert "enrolled" not in first.summary and "enrolled" in second.summary
    lines = table([first, second]).splitlines()
    assert lines[0].endswith("enrolled") and lines[1].endswith(" -")
    files = report([first, second], tmp_path / "report.html")
    assert "1 enrolled class: " in files.html.read_text()
    # a removed class is known no more, in both
    model = oltr_ext.load(enrolled, device="cpu")
    model.remove("A")
    model.save()
    pair = [load_trained(path, device="cpu") for path in (trained, enrolled)]
    assert [r.summary["samples"]["known"] for r in compare(pair, ["x", "y"])] == [70, 70]


def test_another_test_prior_keeps_them(enrolled: Path) -> None:
    model = load_trained(enrolled, device="cpu")
    result = assess(model, name="x", test_prior=1.0)
    assert result.summary["expects"] == "training" and result.summary["enrolled"]["classes"] == 1
    assert model.names == ["A", *KNOWN[1:], "d"]


def test_the_exported_program_knows_them(enrolled: Path, tmp_path: Path) -> None:
    model = load_trained(enrolled, device="cpu")
    about = {ABOUT: ""}
    program = torch.export.load(export(model, tmp_path / "model.pt2"), extra_files=about)
    assert json.loads(about[ABOUT])["class_names"] == ["A", *KNOWN[1:], "d"]
    label, _ = program.module()(torch.from_numpy(ASKED))
    said = oltr_ext.load(enrolled, device="cpu").predict(ASKED)
    names = [None if n < 0 else model.names[n] for n in label.tolist()]
    assert names == said.label.tolist() and "d" in said.closed
