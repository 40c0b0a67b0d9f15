"""Runs whose class banks stay in the file: predicted with, judged, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny import arrays

import oltr_ext
from oltr_ext.cli import main
from oltr_ext.config.loading import make_config
from oltr_ext.data import write_embeddings
from oltr_ext.engine import checkpoint
from oltr_ext.engine.splits import load_splits
from oltr_ext.engine.train import train
from oltr_ext.ops import StreamedBank, bank
from oltr_ext.serve.enroll import refresh
from oltr_ext.serve.export import export
from oltr_ext.serve.trained import load_trained

STAGE = {"epochs": 1, "batch_size": 8, "lr": {"feature": 0.1, "classifier": 0.1, "centroid": 0.1}}
MEMORY = {**STAGE, "class_prior": 1.0, "sampler": "shuffle", "attention": False}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streamed")
    write_embeddings(folder / "data", arrays())
    data = {"kind": "embeddings", "root": str(folder / "data"), "shots": [20, 4]}
    for name, more in (("plain", {}), ("memory", {"stage2": MEMORY})):
        values = {"device": "cpu", "threads": 1, "data": data, "stage1": STAGE, **more}
        train(make_config(values), folder / name)
    np.save(folder / "rows.npy", arrays()["test"][0])
    return folder


@pytest.fixture
def blocks(monkeypatch):
    """Of one class each."""
    monkeypatch.setattr(bank, "BLOCK", 1)


def test_it_answers_the_same(runs, blocks):
    rows = np.load(runs / "rows.npy")
    whole, streamed = (oltr_ext.load(runs / "memory", stream=s) for s in (False, True))
    expected, found = whole.predict(rows), streamed.predict(rows)
    assert found.label.tolist() == expected.label.tolist()
    assert found.closed.tolist() == expected.closed.tolist()
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-5)
    for one, other in zip(found.nearest, expected.nearest, strict=True):
        assert [name for name, _ in one] == [name for name, _ in other]
    sets = [each.predict_set(rows, 0.3) for each in (whole, streamed)]
    assert [s.labels.tolist() for s in sets[0]] == [s.labels.tolist() for s in sets[1]]


def test_no_bank_is_in_memory(runs):
    head = load_trained(runs / "memory", stream=True).model.head
    assert head.streamed and not any(t.is_meta for t in head.state_dict().values())
    assert head.feat_dim not in [
        t.shape[-1] for t in head.parameters() if len(t) == head.num_classes
    ]
    assert isinstance(head.memory.centroids, StreamedBank)
    whole = load_trained(runs / "memory").model.head.state_dict()
    missing = {*whole} - {*head.state_dict()}
    assert {name.rpartition(".")[2] for name in missing} <= {"centroids", "weight", "means", "rows"}
    assert all(torch.equal(whole[k], v) for k, v in head.state_dict().items())


def test_the_commands(runs, blocks, capsys, tmp_path):
    run, rows = str(runs / "memory"), str(runs / "rows.npy")
    answers = []
    for more in ([], ["--stream"]):
        assert main(["predict", run, rows, "--json", *more]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert main(["eval", run, "--json", *more]) == 0
        answers.append((lines, json.loads(capsys.readouterr().out)))
    (lines, summary), (streamed, judged) = answers
    assert [line["label"] for line in streamed] == [line["label"] for line in lines]

    def numbers(value):
        if isinstance(value, dict):
            return [n for each in value.values() for n in numbers(each)]
        return [value] if isinstance(value, int | float) else []

    np.testing.assert_allclose(numbers(judged), numbers(summary), rtol=1e-4)
    assert main(["eval", run, "--out", str(tmp_path), "--stream"]) == 0
    assert (tmp_path / "report.html").is_file()


def test_what_it_refuses(runs, tmp_path):
    with pytest.raises(ValueError, match=r"whole memory of oltr.*got a LinearHead"):
        load_trained(runs / "plain", stream=True)
    model = oltr_ext.load(runs / "memory", stream=True)
    with pytest.raises(ValueError, match=r"read-only: load the model without streaming it"):
        model.enroll(np.ones((2, 6), np.float32), "new")
    file = tmp_path / "model.safetensors"
    file.write_bytes((runs / "memory" / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(checkpoint.CheckpointError, match="truncated or damaged"):
        load_trained(file, stream=True)
    with pytest.raises(checkpoint.CheckpointError, match="no run"):
        load_trained(tmp_path / "none.safetensors", stream=True)


def test_classes_that_joined(runs, tmp_path):
    model = oltr_ext.load(runs / "memory")
    model.enroll(np.ones((2, 6), np.float32), "new")
    file = tmp_path / "model.safetensors"
    file.write_bytes((runs / "memory" / "model.safetensors").read_bytes())
    model = oltr_ext.load(file)
    model.enroll(np.ones((2, 6), np.float32), "new")
    model.save()
    with pytest.raises(ValueError, match="load it without streaming"):
        load_trained(file, stream=True)


def test_names_change_and_the_banks_stay_in_the_file(runs, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes((runs / "memory" / "model.safetensors").read_bytes())
    model = oltr_ext.load(file, stream=True)
    old = model.class_names
    model.rename(old[0], "new")
    model.undo()
    assert model.class_names == old and model.trained.model.head.streamed
    model.undo()
    assert model.class_names[0] == "new" and model.trained.model.head.streamed
    other = oltr_ext.load(file)
    other.enroll(np.ones((2, 6), np.float32), "joined")
    other.save()
    with pytest.raises(ValueError, match="expected banks in memory, got streamed ones"):
        refresh(model.trained)
    assert model.class_names[0] == "new"


def test_observations(runs, blocks, capsys, tmp_path):
    run, rows = str(runs / "memory"), str(runs / "rows.npy")
    (tmp_path / "rows.csv").write_text(
        "path,observation\n" + "".join(f"{rows}[{n}],{n % 4}\n" for n in range(16))
    )
    trained = load_trained(run)
    ids = [n for n in range(24) if n % 3]
    splits = load_splits(trained.config.data)
    lines = [f"{splits.image_id(n)},{n % 4}\n" for n in ids]
    (tmp_path / "test.csv").write_text("path,observation\n" + "".join(lines))
    asked, answers = [f"{rows}[{n}]" for n in range(16)], []
    for more in ([], ["--stream"]):
        seen = ["--observations", str(tmp_path / "rows.csv"), "--json", *more]
        assert main(["predict", run, *asked, *seen]) == 0
        labels = [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()]
        seen[1] = str(tmp_path / "test.csv")
        assert main(["eval", run, *seen]) == 0
        answers.append((labels, json.loads(capsys.readouterr().out)["observations"]))
    (labels, judged), (streamed, found) = answers
    assert streamed == labels and len(labels) == 4
    assert found["observations"] == judged["observations"]
    assert found["closed"] == judged["closed"]
    for command, name in (("predict", "rows"), ("eval", "test")):
        words = [command, run, *(asked if command == "predict" else []), "--by", "scores"]
        assert main([*words, "--stream", "--observations", str(tmp_path / f"{name}.csv")]) == 1
        assert "observations by scores: expected banks in memory" in capsys.readouterr().err


def test_what_wants_all_classes_at_once_says_so(runs, tmp_path):
    model = oltr_ext.load(runs / "memory", stream=True, device="cpu")
    with pytest.raises(ValueError, match="discover: expected banks in memory, got streamed ones"):
        model.discover(np.load(runs / "rows.npy"), out=tmp_path / "found")
    with pytest.raises(ValueError, match="export: expected banks in memory, got streamed ones"):
        export(model.trained, tmp_path / "model.pt2")
    assert not any(tmp_path.iterdir())
