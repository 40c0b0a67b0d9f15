"""The tables of methods: what is tried, what is shown, and that no run is trained twice."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import config, write_data

from oltr_ext.config.loading import load_config, make_config
from oltr_ext.config.methods import METHODS
from oltr_ext.config.schema import OpenSet

TABLES = Path(__file__).resolve().parent.parent / "benchmarks" / "tables"
sys.path.insert(0, str(TABLES))

import ablation  # noqa: E402
import compare  # noqa: E402
import runs  # noqa: E402
import tune  # noqa: E402

PACKAGED = {name: load_config("icons", method=name) for name in METHODS}


@pytest.mark.parametrize("data", list(tune.SETS))
def test_every_method_has_the_same_number_of_different_trials(data):
    lines = tune.trials(data)
    assert lines.keys() == METHODS.keys()
    assert {len(each) for each in lines.values()} == {4}
    for name, each in lines.items():
        tried = [load_config(data, overrides, method=name) for overrides in each]
        assert data == "embeddings" or tried[0] == load_config(data, method=name), name
        assert len({runs.digest(t) for t in tried}) == 4, name
        epochs = [t.stage1.epochs + (t.stage2.epochs if t.stage2 else 0) for t in tried]
        assert len(set(epochs)) == 1, name


def test_every_ablation_changes_its_method():
    changes = {
        "oltr": {**ablation.PARTS, **ablation.MENDS},
        "oltr-plus": {**ablation.PARTS, **ablation.PLUS},
    }
    for method, each in changes.items():
        for change in each.values():
            assert load_config("icons", change, method=method) != PACKAGED[method], change


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_data(folder)
    return make_config(config(folder))


def test_stage_1_is_trained_once_and_rows_are_kept(settings, tmp_path, monkeypatch):
    calls = []
    train = runs.train
    monkeypatch.setattr(runs, "train", lambda *a, **k: calls.append(a[0]) or train(*a, **k))
    row = runs.judged(settings, tmp_path)
    assert [c.stage2 is None for c in calls] == [True, False]
    refit = settings.model_copy(update={"stage2": make_config(
        {**settings.model_dump(mode="json"), "stage2": {"kind": "ncm"}}).stage2})  # fmt: skip
    runs.judged(refit, tmp_path)
    runs.judged(settings.model_copy(update={"stage2": None}), tmp_path)
    assert len(calls) == 3  # stage 1 serves all three
    runs.judged(refit.model_copy(update={"test_prior": "val"}), tmp_path)
    assert len(calls) == 3  # what is expected of test images acts afterwards
    tau = refit.model_copy(update={"stage2": refit.stage2.model_copy(update={"kind": "tau_norm"})})
    runs.trained(tau, tmp_path)
    assert len(calls) == 4
    runs.trained(tau.model_copy(update={"test_prior": "val"}), tmp_path)
    assert len(calls) == 5  # but tau is chosen by it
    assert runs.judged(settings, tmp_path) == row
    asked = settings.model_copy(update={"open_set": OpenSet(score="knn", neighbours=3)})
    other = runs.judged(asked, tmp_path)
    assert (
        len(calls) == 5
        and other["score"] == "knn"
        and other["test"]["overall"] == row["test"]["overall"]
    )
    monkeypatch.setattr(runs, "settled_by", lambda: ["another rule"])  # as after a change of ours
    monkeypatch.setattr(runs, "numbers", lambda *_: {})
    assert runs.judged(settings, tmp_path)["val"] == {} and len(calls) == 5
    assert 0 <= row["test"]["overall"] <= 100 and row["score"] in row["test"]["auroc of"]
    assert row["val"] != row["test"]
    assert {p.name for p in tmp_path.glob("*/*.safetensors")} == {"model.safetensors"}


def run(**test):
    columns = {c: 50.0 for c in compare.COLUMNS}
    return {"test": {**columns, "auroc of": {"energy": 1.0}, **test}, "score": "energy",
            "expects": "alike", "seconds": 3.0}  # fmt: skip


def test_bold_is_the_best_and_what_lies_within_its_deviation():
    rows = {
        "a": [run(overall=80.0, fpr95=10.0), run(overall=82.0, fpr95=12.0)],
        "b": [run(overall=79.7, fpr95=20.0), run(overall=79.7, fpr95=20.0)],
        "c": [run(overall=79.5, fpr95=9.0), run(overall=79.5, fpr95=12.5)],
    }
    assert compare.best("overall", rows) == {"a", "b"}  # 81 less a deviation of 1.41
    assert compare.best("fpr95", rows) == {"c", "a"}
    table = compare.Table("t", "T", "icons", (0, 1), [compare.Row(n, "plain") for n in rows])
    made = {"settings": [], "date": "d", "versions": "v"}
    about = {"seeds": [0, 1], "threads": 1, "command": "x", "rows": dict.fromkeys(rows, made)}
    lines = compare.markdown(table, about, rows).splitlines()
    line = next(x for x in lines if x.startswith("| a |"))
    assert line.startswith("| a | **81.0 ± 1.4** | **50.0 ± 0.0** |")
    assert line.endswith("| energy | alike |")
    del rows["b"][0]["expects"]  # of a row from before it was written down
    lines = compare.markdown(table, about, rows).splitlines()
    assert any(x.endswith("| energy | alike, not recorded |") for x in lines)
    assert np.isclose(compare.spread(compare.values(rows["a"], "overall")), 2**0.5)


def test_rows_made_anew_leave_the_others_in_place(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    a, b = (compare.Row(name, "plain") for name in "ab")
    table = compare.Table("t", "T", "icons", (0,), [a, b])

    def kept():
        found = json.loads((tmp_path / "t.json").read_text())["runs"]
        return {name: each[0]["test"]["overall"] for name, each in found.items()}

    compare.write(table, [b], {"b": [run(overall=1.0)]}, [0])
    compare.write(table, [a], {"a": [run(overall=2.0)]}, [0])
    assert list(kept().items()) == [("a", 2.0), ("b", 1.0)]  # in the table's order
    compare.write(table, [b], {"b": [run(overall=3.0)]}, [0])
    assert kept() == {"a": 2.0, "b": 3.0}
    monkeypatch.setattr(sys, "argv", ["t.py", "--rows", "b", "--seeds", "7"])
    with pytest.raises(SystemExit):  # other seeds do not compare
        compare.make(table)
    assert kept() == {"a": 2.0, "b": 3.0}
    compare.write(table, [b], {"b": [run(overall=4.0)]}, [7])  # all rows of it, anew
    assert kept() == {"b": 4.0}


def test_seeds_join_those_of_the_same_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "RESULTS", tmp_path)
    a, b = (compare.Row(name, "plain") for name in "ab")
    table = compare.Table("t", "T", "icons", (0,), [a, b])
    file = tmp_path / "t.json"

    def runs_of(seed, overall):
        return {name: [{"seed": seed, **run(overall=overall)}] for name in "ab"}

    compare.write(table, [a, b], runs_of(0, 1.0), [0])
    found = json.loads(file.read_text())
    for row in found["rows"].values():  # of another day, before there was a key
        row["date"] = "2026-01-01"
        del row["configuration"]["model"]["compile"]
    file.write_text(json.dumps(found))
    compare.write(table, [a, b], runs_of(1, 2.0), [1], join=True)
    after = json.loads(file.read_text())
    assert after["seeds"] == [0, 1] and [r["seed"] for r in after["runs"]["b"]] == [0, 1]
    assert after["rows"]["a"]["date"].startswith("2026-01-01 and 2")
    assert "compile" in after["rows"]["a"]["configuration"]["model"]
    assert "| a | **1.5 ± 0.7** |" in file.with_suffix(".md").read_text()
    with pytest.raises(SystemExit, match="a seed is there already"):
        compare.write(table, [a, b], runs_of(1, 2.0), [1], join=True)
    after["rows"]["b"]["configuration"]["stage1"]["lr"]["feature"] = 9
    file.write_text(json.dumps(after))
    with pytest.raises(SystemExit, match=r"b had other settings: \['stage1.lr.feature'\]"):
        compare.write(table, [a, b], runs_of(2, 2.0), [2], join=True)
    assert json.loads(file.read_text()) == after
    with pytest.raises(SystemExit, match=r"other rows: \['b'\]"):
        compare.write(table, [a], {"a": [run()]}, [2], join=True)
    monkeypatch.setattr(compare, "judged", None)  # told before anything is trained
    monkeypatch.setattr(sys, "argv", ["t.py", "--seeds", "1", "--join"])
    with pytest.raises(SystemExit, match="a seed is there already"):
        compare.make(table)
    monkeypatch.setattr(sys, "argv", ["t.py", "--rows", "b", "--seeds", "7", "--join"])
    with pytest.raises(SystemExit):  # and all rows at once
        compare.make(table)


def test_another_set_keeps_its_own_rates_unless_they_belong_to_the_method(tmp_path, monkeypatch):
    rate = "stage1.lr={feature: 9, classifier: 9}"
    chosen = {"plain": [rate], "logit-adjustment": ["stage2.tau=0.5"], "ncm": []}
    chosen["range"] = ["stage1.samples_per_class=2", rate]
    found = {"icons": {"methods": {name: {"chosen": what} for name, what in chosen.items()}}}
    (tmp_path / "tuning.json").write_text(json.dumps(found))
    monkeypatch.setattr(tune, "OUT", tmp_path / "tuning.json")
    for name in ("icons", "glyphs-2000", "icons-large"):
        own = 9 if name == "icons" else load_config(name).stage1.lr.feature
        for method, want in {"plain": own, "range": 9}.items():
            row = compare.Row(method, method)
            made = compare.configured(compare.Table("t", "T", name, (0,), [row]), row, 0)
            assert made.stage1.lr.feature == want
        assert tune.chosen("logit-adjustment", name) == ["stage2.tau=0.5"]
    found["glyphs-2000"] = {"methods": {"logit-adjustment": {"chosen": ["stage2.tau=0.75"]}}}
    (tmp_path / "tuning.json").write_text(json.dumps(found))
    assert tune.chosen("logit-adjustment", "icons-large") == ["stage2.tau=0.75"]


def test_a_set_without_open_images_has_its_closed_numbers():
    point = {"known_accepted": 0.95, "open_rejected": None, "oltr2019": None, "oltr2020": 0.5}
    score = {"auroc": None, "fpr95": None, "oscr": None, "operating_points": {"calibrated": point}}
    closed = {"overall": 0.6, "many": 0.9, "medium": 0.5, "few": 0.25}
    found = runs.numbers({"closed": closed, "scores": {"energy": score}}, {"score": "energy"})
    assert found["overall"] == 60 and found["known kept"] == 95 and found["F oltr2020"] == 50
    assert found["auroc"] is None and found["open out"] is None
    assert found["auroc of"] == {"energy": None}
